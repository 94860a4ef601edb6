"""A cache holds what running the teacher gives, and is used for nothing else."""

import errno
import json

import numpy as np
import pytest
import torch

from richkd import cache, models, weights
from richkd.dataset import save_split
from richkd.errors import InputError
from richkd.views import Views

CPU = torch.device("cpu")
VALIDATION = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def saved_after_every_batch(monkeypatch):
    monkeypatch.setattr(cache, "SAVE_EVERY", 0)


@pytest.fixture(scope="module")
def teacher(data):
    torch.manual_seed(0)
    model = models.create("resnet8", 4)
    model(data.batch(torch.arange(22), torch.arange(22) % 18))  # moves the running statistics
    return model.eval()


def build(name, teacher, data, view_ids=range(18), key="key", made_from=()):
    return cache.build(
        f"cache/{name}", teacher, data, view_ids, VALIDATION, 4, "fp32", dict(made_from), key
    )


def table(name):
    arrays = (np.load(f"cache/{name}/{part}.npy") for part in cache.TABLES)
    return cache.Table(*map(torch.from_numpy, arrays))


def same(found, ids, view_ids, expected):
    """Up to what 16 bits round, and logits up to a constant a row."""
    logits = found.logits(ids, view_ids)
    assert logits.dtype == torch.float32 and not logits.amax(1).any()
    exact = expected.logits - expected.logits.amax(1, keepdim=True)
    torch.testing.assert_close(logits, exact, rtol=5e-4, atol=1e-4)
    features = found.features(ids, view_ids)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected.features, rtol=5e-4, atol=1e-4)


def content(name):
    folder = cache.Path("cache") / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_lookup_is_what_the_teacher_gives_for_the_view(here, teacher, data):
    build("teacher", teacher, data)
    found = table("teacher")
    assert found.feature_dim == 64
    for view in range(18):
        ids, views = torch.arange(22), torch.full((22,), view)
        with torch.no_grad():
            expected = teacher(data.batch(ids, views))
        same(found, ids, views, expected)


def test_a_lookup_takes_images_and_views_in_any_order(here, teacher, data):
    build("teacher", teacher, data)
    ids, views = torch.tensor([21, 3, 3, 0]), torch.tensor([0, 17, 2, 9])
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(table("teacher"), ids, views, expected)


def test_the_centre_alone_answers_for_every_view(here, teacher, data):
    build("teacher", teacher, data, [data.views.center])
    ids = torch.tensor([5, 5, 2])
    with torch.no_grad():
        expected = teacher(data.batch(ids, torch.full((3,), data.views.center)))
    found = table("teacher")
    for views in ([0, 17, 4], [4, 4, 4]):
        same(found, ids, torch.tensor(views), expected)


def test_the_validation_images_are_run_as_they_are(here, teacher, data):
    logits, features = build("teacher", teacher, data)
    with torch.no_grad():
        expected = teacher(VALIDATION)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(features, expected.features)
    np.testing.assert_array_equal(np.load("cache/teacher/validation.npy"), logits.numpy())


def test_a_killed_build_goes_on_where_it_stopped(here, teacher, data, killed_after):
    build("whole", teacher, data)
    with killed_after(teacher, 40):
        build("broken", teacher, data)
    assert not cache.Path("cache/broken").exists()
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    build("broken", teacher, data)
    handle.remove()
    # 18 views of 6 batches, of which 39 are done after one that told the shapes, and 2 batches of
    # validation images.
    assert len(calls) == 18 * 6 - 39 + 2
    assert content("broken") == content("whole")
    assert not list(cache.FOLDER.iterdir())


@pytest.mark.parametrize("calls", [0, 109, 110])  # before all, before validation, within it
def test_a_build_killed_anywhere_ends_where_the_unbroken_one_does(
    here, teacher, data, killed_after, calls
):
    build("whole", teacher, data)
    with killed_after(teacher, calls):
        build("broken", teacher, data)
    build("broken", teacher, data)
    assert content("broken") == content("whole")


def test_another_experiment_never_goes_on(here, teacher, data, killed_after):
    torch.manual_seed(1)
    other = models.create("resnet8", 4).eval()
    with killed_after(teacher, 40):
        build("x", teacher, data, key="one")
    build("x", other, data, key="another")
    build("whole", other, data, key="another")
    assert content("x") == content("whole")


def test_a_new_cache_replaces_the_old_one(here, teacher, data):
    build("x", teacher, data, made_from={"a": 1})
    build("x", teacher, data, [data.views.center], made_from={"a": 2})
    assert np.load("cache/x/logits.npy").shape == (1, 22, 4)
    assert json.loads(cache.Path("cache/x/cache.json").read_text()) == {"a": 2}


# --- what it was made from ----------------------------------------------------------------------

MORE = {"prompt_list": ["a photo of {}"], "logit_scale": "model"}


@pytest.fixture
def made(here, split, teacher, data):
    """A CLIP-like cache with all that it is made from in place."""
    save_split(cache.TRAIN, split)
    weights.save("models/clip/seed0", teacher.state_dict(), {})
    made_from = cache.identity(cache.Path("models/clip/seed0"), data.views, "all", **MORE)
    build("clip", teacher, data, made_from=made_from)


def test_a_cache_is_used_where_nothing_changed(made, teacher, data):
    ids, views = torch.tensor([1, 2]), torch.tensor([3, 4])
    found = cache.of("clip", data.views, "all", CPU, **MORE)
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(found, ids, views, expected)


CHANGED = {
    "pad": ({"views": Views(8, 8, 2, True)}, "set of views", "'pad': 1", "'pad': 2"),
    "flip": ({"views": Views(8, 8, 1, False)}, "set of views", "'flip': True", "'flip': False"),
    "held": ({"held": "center"}, "set of views", "'held': 'all'", "'held': 'center'"),
    "prompts": ({"prompt_list": ["a {}"]}, "prompt list", "['a photo of {}']", "['a {}']"),
    "scale": ({"logit_scale": 20.0}, "logit scale", "model", "20.0"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_cache_of_other_params_is_refused_by_name(made, data, name):
    changes, part, had, needed = CHANGED[name]
    arguments = {"views": data.views, "held": "all", "device": CPU, **MORE, **changes}
    with pytest.raises(InputError) as caught:
        cache.of("clip", **arguments)
    message = str(caught.value)
    assert message.startswith(f"cache/clip was made with another {part} (") and "\n" not in message
    assert had in message.split("needed is")[0] and needed in message.split("needed is")[1]


def test_a_cache_of_another_data_set_is_refused(made, data, split):
    save_split(cache.TRAIN, split._replace(images=split.images + 1))
    with pytest.raises(InputError, match="cache/clip was made with another data set"):
        cache.of("clip", data.views, "all", CPU, **MORE)


def test_a_cache_of_another_teacher_is_refused(made, data):
    weights.save("models/clip/seed0", models.create("resnet8", 4).state_dict(), {})
    with pytest.raises(InputError, match="cache/clip was made with another teacher"):
        cache.of("clip", data.views, "all", CPU, **MORE)


def test_a_cache_whose_teacher_is_gone_is_refused(made, data):
    cache.Path("models/clip/seed0.json").unlink()
    with pytest.raises(InputError, match="models/clip holds no model"):
        cache.of("clip", data.views, "all", CPU, **MORE)


def test_a_cache_that_is_not_there_is_named(made, data):
    cache.Path("cache/clip/cache.json").unlink()
    with pytest.raises(FileNotFoundError, match="cache/clip/cache.json"):
        cache.of("clip", data.views, "all", CPU, **MORE)


# --- on the device, or streamed -----------------------------------------------------------------


def parts(views=18):
    draw = torch.Generator().manual_seed(0)
    shapes = {"logits": (views, 22, 4), "features": (views, 22, 6)}
    return {name: torch.randn(shape, generator=draw).half() for name, shape in shapes.items()}


@pytest.mark.parametrize("views", [18, 1])
def test_a_streamed_table_answers_for_the_batch_that_has_begun(views):
    whole, streamed = cache.Table(**parts(views)), cache.Streamed(parts(views), CPU)
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):  # epochs
        batches = [
            (torch.randint(22, (n,), generator=draw), torch.randint(18, (n,), generator=draw))
            for n in (5, 5, 5, 5, 5, 5, 3)  # more than are gathered ahead
        ]
        streamed.start(batches)
        for batch in batches:
            streamed.advance()
            for part in cache.TABLES:
                found = getattr(streamed, part)(*batch)
                assert found.dtype == torch.float32
                assert torch.equal(found, getattr(whole, part)(*batch))


def test_a_streamed_table_answers_from_the_same_memory():
    streamed = cache.Streamed(parts(), CPU)
    ids = torch.arange(4)
    streamed.start([(ids, ids), (ids[:2], ids[:2])])
    places = set()
    for batch in (ids, ids[:2]):
        streamed.advance()
        places.add(streamed.rows["logits"].data_ptr())
    assert len(places) == 1


def test_readers_of_one_streamed_table_have_batches_of_their_own():
    streamed = cache.Streamed(parts(), CPU)
    first, second = streamed.reader(), streamed.reader()
    ids = torch.arange(4)
    first.start([(ids, ids)])
    second.start([(ids + 7, ids)])
    first.advance()
    second.advance()
    assert torch.equal(first.logits(ids, ids), cache.Table(**parts()).logits(ids, ids))
    assert not torch.equal(first.logits(ids, ids), second.logits(ids, ids))


def test_what_fails_as_rows_are_gathered_fails_the_run():
    streamed = cache.Streamed(parts(), CPU)
    streamed.start([(torch.tensor([99]), torch.tensor([17]))])
    with pytest.raises(IndexError):
        streamed.advance()


@pytest.mark.parametrize(("free", "kind"), [(2, cache.Table), (1.9, cache.Streamed)])
def test_a_table_is_streamed_where_it_takes_more_than_half_of_a_device(monkeypatch, free, kind):
    size = sum(x.nbytes for x in parts().values())
    monkeypatch.setattr(cache, "free_memory", lambda device: free * size)
    assert type(cache.place(parts(), torch.device("meta"))) is kind
    assert type(cache.place(parts(), CPU)) is cache.Table  # mapped from the disk


def test_a_variant_reads_its_parts_alone(made, data, capsys):
    cache.Path("cache/clip/features.npy").unlink()
    table = cache.of("clip", data.views, "all", CPU, ["logits"], **MORE)
    assert list(table.parts) == ["logits"]
    assert "cache/clip: 0.0 MB of logits, on the cpu" in capsys.readouterr().out


# --- sizes --------------------------------------------------------------------------------------


def test_sizes_are_said_before_the_work_starts(here, teacher, data, killed_after, capsys):
    with killed_after(teacher, 1):  # the one that tells the shapes
        build("teacher", teacher, data)
    said = capsys.readouterr().out
    assert "logits 18 × 22 × 4, features 18 × 22 × 64 in float16: 0.1 MB, and as much in" in said


def test_too_little_disk_is_an_error_before_the_work(here, teacher, data, monkeypatch):
    needed = 2 * 2 * 18 * 22 * (4 + 64)
    usage = cache.shutil.disk_usage(here)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match="a cache of 0.1 MB, and as much in DVC's, do not fit on"):
        build("teacher", teacher, data)
    handle.remove()
    assert len(calls) == 1 and not cache.Path("cache").exists()


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_what_16_bits_do_not_hold_is_refused(here, teacher, data, value):
    def spoil(module, inputs, output):
        output.features[-1, 3] = value

    handle = teacher.register_forward_hook(spoil)
    with pytest.raises(InputError, match="cache/x: the features of images 0 to 3 are not finite, or"):
        build("x", teacher, data)
    handle.remove()
    assert not cache.Path("cache").exists()


def test_a_full_device_says_what_to_lower(here, teacher, data, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    build("x", teacher, data)  # the shapes can be told
    monkeypatch.setattr(cache, "_rows", full)
    with pytest.raises(InputError, match="out of memory: lower cache.batch_size"):
        build("teacher", teacher, data)


def test_a_disk_too_small_is_an_error_before_the_work(here, teacher, data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build("teacher", teacher, data)
    assert not cache.Path("cache").exists()
