"""A cache holds what running the teacher gives, and is used for nothing else."""

import errno
import json
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from richkd import cache, distributed, losses, models, weights
from richkd.dataset import save_split
from richkd.engine import ResidentSet
from richkd.errors import InputError
from richkd.models import ModelOutput
from richkd.views import RandomResizedCrop, Views

CPU = torch.device("cpu")
PARTS = ("logits", "features", "classes")
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


def build(name, teacher, data, view_ids=range(18), key="key", made_from=(), top_k=None):
    return cache.build(
        f"cache/{name}", teacher, data, view_ids, VALIDATION, 4, "fp32", dict(made_from), key, top_k
    )


def shards(name, part):
    return [np.load(path) for path in sorted(cache.Path(f"cache/{name}").glob(f"{part}-*.npy"))]


def table(name, num_classes=None):
    parts = {part: shards(name, part) for part in PARTS}
    rows = {part: torch.from_numpy(np.concatenate(x)) for part, x in parts.items() if x}
    views = {part: x.view(-1, 22, x.shape[1]) for part, x in rows.items()}
    return cache.Table(**views, num_classes=num_classes)


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
    # Each time one that tells the shapes; 18 views of 6 batches, of which 39 are done; 2 batches of
    # validation images.
    assert len(calls) == 1 + 18 * 6 - 39 + 2
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
    assert [x.shape for x in shards("x", "logits")] == [(22, 4)]
    shape = {"views": 1, "images": 22, "classes": 4}
    assert json.loads(cache.Path("cache/x/cache.json").read_text()) == {"a": 2, "shape": shape}


# --- what it was made from ----------------------------------------------------------------------

MORE = {"prompt_list": ["a photo of {}"], "logit_scale": "model"}


@pytest.fixture
def made(here, split, teacher, data):
    """A CLIP-like cache with all that it is made from in place."""
    save_split(cache.TRAIN, split)
    weights.save("models/clip/seed0", teacher.state_dict(), {})
    made_from = cache.identity(cache.Path("models/clip/seed0"), data.views, "all", None, **MORE)
    build("clip", teacher, data, made_from=made_from)


def test_a_cache_is_used_where_nothing_changed(made, teacher, data):
    ids, views = torch.tensor([1, 2]), torch.tensor([3, 4])
    found = cache.of("clip", data.views, "all", None, CPU, **MORE)
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(found, ids, views, expected)


def test_a_cache_beside_random_crops_is_used_where_these_are_the_same(made, teacher, data):
    crops = RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True)
    made_from = cache.identity(cache.Path("models/clip/seed0"), crops, "center", None, **MORE)
    build("clip", teacher, data, [data.views.center], made_from=made_from)
    cache.of("clip", crops, "center", None, CPU, **MORE)
    crops.ratio = (0.7, 1.5)
    with pytest.raises(InputError, match="cache/clip was made with another set of views"):
        cache.of("clip", crops, "center", None, CPU, **MORE)


CHANGED = {
    "pad": ({"views": Views(8, 8, 2, True)}, "set of views", "'pad': 1", "'pad': 2"),
    "flip": ({"views": Views(8, 8, 1, False)}, "set of views", "'flip': True", "'flip': False"),
    "held": ({"held": "center"}, "set of views", "'held': 'all'", "'held': 'center'"),
    "prompts": ({"prompt_list": ["a {}"]}, "prompt list", "['a photo of {}']", "['a {}']"),
    "scale": ({"logit_scale": 20.0}, "logit scale", "model", "20.0"),
    "top k": ({"top_k": 2}, "top k", "None", "2"),
    "augmentation": (
        {"views": RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True)}, "set of views", "'pad': 1",
        "'scale': [0.1, 1.0]",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_cache_of_other_params_is_refused_by_name(made, data, name):
    changes, part, had, needed = CHANGED[name]
    arguments = {"views": data.views, "held": "all", "top_k": None, "device": CPU, **MORE, **changes}
    with pytest.raises(InputError) as caught:
        cache.of("clip", **arguments)
    message = str(caught.value)
    assert message.startswith(f"cache/clip was made with another {part} (") and "\n" not in message
    assert had in message.split("needed is")[0] and needed in message.split("needed is")[1]


def test_a_cache_of_another_data_set_is_refused(made, data, split):
    save_split(cache.TRAIN, split._replace(images=split.images + 1))
    with pytest.raises(InputError, match="cache/clip was made with another data set"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


def test_a_cache_of_another_teacher_is_refused(made, data):
    weights.save("models/clip/seed0", models.create("resnet8", 4).state_dict(), {})
    with pytest.raises(InputError, match="cache/clip was made with another teacher"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


def test_a_cache_of_a_teacher_that_sees_images_otherwise_is_refused(made, teacher, data):
    weights.save("models/clip/seed0", teacher.state_dict(), {"mean": [0.1, 0.2, 0.3]})
    with pytest.raises(InputError, match="cache/clip was made with another input of the teacher"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


def test_a_cache_whose_teacher_is_gone_is_refused(made, data):
    cache.Path("models/clip/seed0.json").unlink()
    with pytest.raises(InputError, match="models/clip holds no model"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


def test_a_cache_that_is_not_there_is_named(made, data):
    cache.Path("cache/clip/cache.json").unlink()
    with pytest.raises(FileNotFoundError, match="cache/clip/cache.json"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


# --- on the device, or streamed -----------------------------------------------------------------


def parts(views=18):
    draw = torch.Generator().manual_seed(0)
    shapes = {"logits": (views, 22, 4), "features": (views, 22, 6)}
    return {name: torch.randn(shape, generator=draw).half() for name, shape in shapes.items()}


def cut(tensors, rows=1000):
    """In shards of so many rows."""
    return {name: list(x.flatten(0, 1).split(rows)) for name, x in tensors.items()}


def streamed_table(views=18, rows=1000):
    return cache.Streamed(cut(parts(views), rows), 22 if views > 1 else None, CPU)


@pytest.mark.parametrize("rows", [1000, 7])  # a shard, and several
@pytest.mark.parametrize("views", [18, 1])
def test_a_streamed_table_answers_for_the_batch_that_has_begun(views, rows):
    whole, streamed = cache.Table(**parts(views)), streamed_table(views, rows)
    assert streamed.feature_dim == whole.feature_dim == 6
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):  # epochs
        batches = [
            (torch.randint(22, (n,), generator=draw), torch.randint(18, (n,), generator=draw))
            for n in (5, 5, 5, 5, 5, 5, 3)  # more than are gathered ahead
        ]
        streamed.start(batches)
        for batch in batches:
            streamed.advance()
            for part in ("logits", "features"):
                found = getattr(streamed, part)(*batch)
                assert found.dtype == torch.float32
                assert torch.equal(found, getattr(whole, part)(*batch))


def test_a_streamed_table_answers_from_the_same_memory():
    streamed = streamed_table()
    ids = torch.arange(4)
    streamed.start([(ids, ids), (ids[:2], ids[:2])])
    places = set()
    for batch in (ids, ids[:2]):
        streamed.advance()
        places.add(streamed.rows["logits"].data_ptr())
    assert len(places) == 1


def test_readers_of_one_streamed_table_have_batches_of_their_own(data):
    streamed = streamed_table()
    first, second = streamed.reader(data), streamed.reader(data)
    ids = torch.arange(4)
    first.start([(ids, ids)])
    second.start([(ids + 7, ids)])
    first.advance()
    second.advance()
    assert torch.equal(first.logits(ids, ids), cache.Table(**parts()).logits(ids, ids))
    assert not torch.equal(first.logits(ids, ids), second.logits(ids, ids))


def test_what_fails_as_rows_are_gathered_fails_the_run():
    streamed = streamed_table()
    streamed.start([(torch.tensor([99]), torch.tensor([17]))])
    with pytest.raises(IndexError):
        streamed.advance()


@pytest.mark.parametrize(("free", "kind"), [(2, cache.Table), (1.9, cache.Streamed)])
def test_a_table_is_streamed_where_it_takes_more_than_half_of_a_device(monkeypatch, free, kind):
    size = sum(x.nbytes for x in parts().values())
    monkeypatch.setattr(cache, "free_memory", lambda device: free * size)
    for rows in (1000, 7):
        assert type(cache.place(cut(parts(), rows), 18, 22, torch.device("meta"))) is kind


@pytest.mark.parametrize(("rows", "kind"), [(1000, cache.Table), (7, cache.Streamed)])
@pytest.mark.parametrize("views", [18, 1])
def test_on_a_cpu_a_table_of_one_file_is_mapped_and_one_of_several_streamed(views, rows, kind):
    found = cache.place(cut(parts(views), rows), views, 22, CPU)
    batch = torch.tensor([21, 3, 3, 0]), torch.tensor([0, 17, 2, 9])
    found.start([batch])
    found.advance()
    assert type(found) is kind
    assert torch.equal(found.logits(*batch), cache.Table(**parts(views)).logits(*batch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1000, 7])
@pytest.mark.parametrize("views", [18, 1])
def test_a_table_on_a_gpu_is_whole_whatever_the_shards(views, rows):
    found = cache.place(cut(parts(views), rows), views, 22, torch.device("cuda"))
    assert type(found) is cache.Table
    assert all(torch.equal(x.cpu(), parts(views)[name]) for name, x in found.parts.items())


def test_a_variant_reads_its_parts_alone(made, data, capsys):
    cache.Path("cache/clip/features-000.npy").unlink()
    table = cache.of("clip", data.views, "all", None, CPU, ["logits"], **MORE)
    assert list(table.parts) == ["logits"]
    assert "cache/clip: 0.0 MB of logits, on the cpu" in capsys.readouterr().out


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch):
    """5 rows of features a file, 80 of logits: ends lie within batches."""
    monkeypatch.setattr(cache, "SHARD_BYTES", cache.HEADER + 5 * 64 * 2)


@pytest.fixture
def few_saves(monkeypatch):
    """Flushing hundreds of files after every batch takes seconds."""
    monkeypatch.setattr(cache, "SAVE_EVERY", 5)


def test_shards_hold_the_rows_of_one_file(
    few_saves, small_shards, here, teacher, data, monkeypatch
):
    build("x", teacher, data)
    assert [len(x) for x in shards("x", "logits")] == [80] * 4 + [76]
    assert [len(x) for x in shards("x", "features")] == [5] * 79 + [1]
    sizes = [path.stat().st_size for path in cache.Path("cache/x").glob("*-*.npy")]
    assert max(sizes) == cache.SHARD_BYTES
    monkeypatch.setattr(cache, "SHARD_BYTES", 256_000_000)
    build("whole", teacher, data)
    assert len(shards("whole", "logits")) == len(shards("whole", "features")) == 1
    for part, rows in table("x").parts.items():
        assert torch.equal(rows, table("whole").parts[part])


FEW = range(5)  # views, 30 batches


def test_a_build_of_shards_killed_goes_on_to_the_same_bytes(
    small_shards, here, teacher, data, killed_after
):
    build("unbroken", teacher, data, FEW)
    with killed_after(teacher, 17):
        build("broken", teacher, data, FEW)
    build("broken", teacher, data, FEW)
    assert content("broken") == content("unbroken")


def together(monkeypatch, work):
    """Call `work` in two threads which take themselves for two processes; what one raises."""
    own, meeting, errors = threading.local(), threading.Barrier(2), []
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(distributed, "wait", lambda: meeting.wait(60))

    def process(rank):
        own.rank = rank
        try:
            work()
        except threading.BrokenBarrierError:
            pass  # the other has failed
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_processes_write_the_bytes_of_one_also_killed_and_resumed(
    small_shards, here, teacher, data, killed_after, monkeypatch
):
    build("one", teacher, data, FEW)
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    with killed_after(teacher, 17):
        together(monkeypatch, lambda: build("two", teacher, data, FEW))
    assert not cache.Path("cache/two").exists()
    together(monkeypatch, lambda: build("two", teacher, data, FEW))
    handle.remove()
    assert content("two") == content("one")
    # Both tell the shapes, twice, and run the validation images; no batch is run again.
    assert len(calls) == 2 * 2 + 5 * 6 + 2 * 2


def test_a_cache_in_shards_is_used_as_one_in_a_file(few_saves, small_shards, made, teacher, data):
    ids, views = torch.tensor([1, 2, 21, 0]), torch.tensor([3, 4, 17, 0])
    found = cache.of("clip", data.views, "all", None, CPU, **MORE).reader(data)
    assert type(found) is cache.Streamed
    found.start([(ids, views)])
    found.advance()
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(found, ids, views, expected)


def test_shards_are_read_in_order_beyond_a_thousand(here):
    for number in (999, 1000, 101, 2):
        np.save(f"x-{number:03}.npy", np.full((1, 1), number))
    assert [int(x[0, 0]) for x in cache._open(here, "x")] == [2, 101, 999, 1000]


# --- the largest logits alone -------------------------------------------------------------------

EVERY = torch.arange(22).repeat(18), torch.arange(18).repeat_interleave(22)


@pytest.fixture(scope="module")
def sharp(data):
    """A teacher of ten classes that is sure of some, and its logits on every view."""
    torch.manual_seed(1)
    model = models.create("resnet8", 10)
    model(data.batch(torch.arange(22), torch.arange(22) % 18))
    with torch.no_grad():
        model.fc.weight *= 10
        return model.eval(), model(data.batch(*EVERY)).logits


def test_the_largest_logits_are_the_teacher_s_and_the_others_share_the_rest(here, sharp, data):
    model, exact = sharp
    build("x", model, data, top_k=3)
    assert {x.dtype for x in shards("x", "classes")} == {np.dtype(np.int16)}
    assert shards("x", "logits")[0].shape == (396, 4)
    found = table("x", 10).logits(*EVERY)
    assert found.dtype == torch.float32 and found.shape == (396, 10)

    values, largest = exact.topk(3)
    kept = found.gather(1, largest)
    torch.testing.assert_close(kept, values - values[:, :1], rtol=5e-4, atol=1e-4)
    others = found.scatter(1, largest, torch.nan)
    others = others[~others.isnan()].view(396, 7)
    assert (others == others[:, :1]).all() and (others < kept[:, 2:]).all()


def masses(logits, largest, temperature):
    """What the `largest` classes have of the probability, and what the others have together."""
    probabilities = F.softmax(logits / temperature, dim=1)
    each = probabilities.gather(1, largest)
    return each, 1 - each.sum(1)


def test_probabilities_of_the_largest_and_of_the_rest_are_the_teacher_s(here, sharp, data):
    model, exact = sharp
    build("x", model, data, top_k=3)
    found, largest = table("x", 10).logits(*EVERY), exact.topk(3).indices
    (each, rest), (expected, whole_rest) = (masses(x, largest, 1.0) for x in (found, exact))
    assert whole_rest.max() > 0.2 and whole_rest.min() < 0.05  # of both kinds
    torch.testing.assert_close(each, expected, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(rest, whole_rest, rtol=2e-3, atol=1e-3)
    for temperature in (2.0, 4.0):
        rest, whole_rest = (masses(x, largest, temperature)[1] for x in (found, exact))
        assert (rest > whole_rest - 1e-3).all() and (rest > whole_rest + 0.02).any()


@pytest.mark.parametrize(("classes", "kind"), [(2**15, np.int16), (2**15 + 1, np.int32)])
def test_classes_take_16_bits_where_these_hold_them(here, data, classes, kind):
    class Last(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), classes)
            logits[:, -1] = 5
            return ModelOutput(logits, logits[:, :2])

    build("x", Last(), data, [data.views.center], top_k=1)
    (found,) = shards("x", "classes")
    assert found.dtype == kind
    ids = torch.arange(2)
    assert table("x", classes).logits(ids, ids).argmax(1).tolist() == [classes - 1] * 2


@pytest.mark.parametrize("top_k", [4, 5])
def test_as_many_as_there_are_classes_are_refused(here, teacher, data, top_k):
    with pytest.raises(InputError) as caught:
        build("x", teacher, data, top_k=top_k)
    assert str(caught.value) == f"cache.top_k is {top_k}: must be below the number of classes, 4"
    assert not cache.Path("cache").exists() and not cache.FOLDER.exists()


def saved(model, arch, classes, mean, std):
    record = {
        "kind": "classifier", "arch": arch, "num_classes": classes, "mean": mean, "std": std,
        "center": None,
    }  # fmt: skip
    weights.save("models/teacher/seed0", model.state_dict(), record)
    return cache.Path("models/teacher/seed0")


@pytest.mark.parametrize("size", [cache.SHARD_BYTES, 1024])  # a file a part, or several
def test_a_cache_of_the_largest_is_used_and_another_number_refused(
    few_saves, here, split, sharp, data, monkeypatch, size
):
    monkeypatch.setattr(cache, "SHARD_BYTES", size)
    model, _ = sharp
    save_split(cache.TRAIN, split)
    path = saved(model, "resnet8", 10, data.mean, data.std)
    made_from = cache.identity(path, data.views, "all", 3)
    build("teacher", model, data, made_from=made_from, top_k=3)
    found = cache.of("teacher", data.views, "all", 3, CPU, ["logits"]).reader(data)
    assert set(found.parts) == {"logits", "classes"}
    ids, views = torch.tensor([21, 3, 3, 0]), torch.tensor([0, 17, 2, 9])
    found.start([(ids, views)])
    found.advance()
    assert torch.equal(found.logits(ids, views), table("teacher", 10).logits(ids, views))
    for other in (None, 2):
        with pytest.raises(InputError, match=f"another top k \\(3, needed is {other}\\)"):
            cache.of("teacher", data.views, "all", other, CPU)


# --- a teacher that runs along ------------------------------------------------------------------


@pytest.fixture(params=["the student's", "its own"])
def online(request, here, split, sharp, data):
    """A teacher that runs along, and the table of all its views: whatever its normalisation."""
    look = data.mean, data.std
    if request.param == "its own":
        look = [0.1, 0.6, 0.45], [0.5, 0.25, 0.3]
    model, _ = sharp
    save_split(cache.TRAIN, split)
    path = saved(model, "resnet8", 10, *look)
    build("table", model, ResidentSet(split, *look, data.views, CPU))
    build("teacher", model, data, [], made_from=cache.identity(path, data.views, "online", None))
    return cache.of("teacher", data.views, "online", None, CPU), table("table")


def test_an_online_cache_has_no_tables_and_is_checked_as_any_other(online, sharp, data, capsys):
    model, _ = sharp
    files = {path.name for path in cache.Path("cache/teacher").iterdir()}
    assert files == {"cache.json", "validation.npy"}
    with torch.no_grad():
        expected = model(VALIDATION).logits.numpy()
    np.testing.assert_allclose(np.load("cache/teacher/validation.npy"), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="cache/teacher was made with another set of views"):
        cache.of("teacher", data.views, "center", None, CPU)
    cache.of("teacher", data.views, "online", None, CPU)
    assert "cache/teacher: the teacher runs along, on the cpu" in capsys.readouterr().out


def test_building_an_online_cache_runs_the_validation_images_alone(here, teacher, data):
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    build("x", teacher, data, [])
    handle.remove()
    assert len(calls) == 1 + 2  # one tells the shapes


def test_a_teacher_that_runs_along_teaches_as_the_table_of_all_views(online, data):
    teacher, found = online[0].reader(data), online[1]
    assert teacher.feature_dim == found.feature_dim
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        ids, views = torch.randint(22, (64,), generator=draw), data.views.sample(64, draw)
        teacher.start([(ids, views)])
        teacher.advance()
        student = torch.randn(64, 10, generator=draw)
        values = [losses.kd(student, x.logits(ids, views), 3.0) for x in (teacher, found)]
        torch.testing.assert_close(*values, rtol=5e-4, atol=0)
        both = (x.features(ids, views) for x in (teacher, found))
        torch.testing.assert_close(*both, rtol=5e-4, atol=1e-4)


def test_a_teacher_that_runs_along_runs_once_a_batch_and_learns_nothing(online, data):
    first, second = (online[0].reader(data) for _ in range(2))
    model, calls = online[0].loaded.model, []
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.register_forward_hook(
        lambda module, *_: calls.append((module.training, torch.is_grad_enabled()))
    )
    ids = torch.arange(5)
    for turn in range(2):
        for teacher in (first, second):  # runs side by side
            teacher.advance()
        for number, teacher in enumerate((first, second)):
            found = [teacher.logits(ids + number, ids), teacher.features(ids + number, ids)]
            assert not any(x.requires_grad for x in found)
            assert {x.dtype for x in found} == {torch.float32}
            assert calls == [(False, False)] * (2 * turn + number + 1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


# --- sizes --------------------------------------------------------------------------------------


def test_sizes_are_said_before_the_work_starts(here, teacher, data, killed_after, capsys):
    with killed_after(teacher, 1):  # the one that tells the shapes
        build("teacher", teacher, data)
    said = capsys.readouterr().out
    assert "logits 396 × 4, features 396 × 64 in 16 bits: 0.1 MB, and as much in" in said


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


def test_a_disk_that_fills_up_meanwhile_is_one_line(here, teacher, data, monkeypatch):
    monkeypatch.setattr(cache.os, "pwrite", lambda *_: 7)
    with pytest.raises(InputError, match=r"logits-000\.npy could not be written"):
        build("teacher", teacher, data)
    assert not cache.Path("cache/teacher").exists()
