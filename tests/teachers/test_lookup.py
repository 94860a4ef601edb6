"""A lookup gives what running the teacher gives, and a cache is used for nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tables import VALIDATION, build, shards, table
from torch.nn import functional as F

from richkd import losses, models, weights
from richkd.base.errors import InputError
from richkd.data.dataset import save_split
from richkd.data.resident import ResidentSet
from richkd.data.views import RandomResizedCrop, Views
from richkd.teachers import caching
from richkd.teachers import lookup as cache

CPU = torch.device("cpu")


def same(found, ids, view_ids, expected):
    """Up to what 16 bits round, and logits up to a constant a row."""
    logits = found.logits(ids, view_ids)
    assert logits.dtype == torch.float32 and not logits.amax(1).any()
    exact = expected.logits - expected.logits.amax(1, keepdim=True)
    torch.testing.assert_close(logits, exact, rtol=5e-4, atol=1e-4)
    features = found.features(ids, view_ids)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected.features, rtol=5e-4, atol=1e-4)


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


# --- what it was made from ----------------------------------------------------------------------

MORE = {"prompt_list": ["a photo of {}"], "logit_scale": "model"}


@pytest.fixture
def made(here, split, teacher, data):
    """A CLIP-like cache with all that it is made from in place."""
    save_split(cache.TRAIN, split)
    weights.save("models/clip/seed0", teacher.state_dict(), {})
    made_from = cache.identity(Path("models/clip/seed0"), data.views, "all", None, **MORE)
    build("clip", teacher, data, made_from=made_from)


def test_a_cache_is_used_where_nothing_changed(made, teacher, data):
    ids, views = torch.tensor([1, 2]), torch.tensor([3, 4])
    found = cache.of("clip", data.views, "all", None, CPU, **MORE)
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(found, ids, views, expected)


def test_a_cache_beside_random_crops_is_used_where_these_are_the_same(made, teacher, data):
    crops = RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True)
    made_from = cache.identity(Path("models/clip/seed0"), crops, "center", None, **MORE)
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
        {"views": RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True)},
        "set of views",
        "'pad': 1",
        "'scale': [0.1, 1.0]",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_cache_of_other_params_is_refused_by_name(made, data, name):
    changes, part, had, needed = CHANGED[name]
    arguments = {
        "views": data.views,
        "held": "all",
        "top_k": None,
        "device": CPU,
        **MORE,
        **changes,
    }
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
    Path("models/clip/seed0.json").unlink()
    with pytest.raises(InputError, match="models/clip holds no model"):
        cache.of("clip", data.views, "all", None, CPU, **MORE)


def test_a_cache_that_is_not_there_is_named(made, data):
    Path("cache/clip/cache.json").unlink()
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
    Path("cache/clip/features-000.npy").unlink()
    table = cache.of("clip", data.views, "all", None, CPU, ["logits"], **MORE)
    assert list(table.parts) == ["logits"]
    assert "cache/clip: 0.0 MB of logits, on the cpu" in capsys.readouterr().out


def test_a_cache_in_shards_is_used_as_one_in_a_file(small_shards, made, teacher, data):
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


def saved(model, arch, classes, mean, std):
    record = {
        "kind": "classifier", "arch": arch, "num_classes": classes, "mean": mean, "std": std,
        "center": None,
    }  # fmt: skip
    weights.save("models/teacher/seed0", model.state_dict(), record)
    return Path("models/teacher/seed0")


@pytest.mark.parametrize("size", [caching.SHARD_BYTES, 1024])  # a file a part, or several
def test_a_cache_of_the_largest_is_used_and_another_number_refused(
    here, split, sharp, data, monkeypatch, size
):
    monkeypatch.setattr(caching, "SHARD_BYTES", size)
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
    files = {path.name for path in Path("cache/teacher").iterdir()}
    assert files == {"cache.json", "validation.npy"}
    with torch.no_grad():
        expected = model(VALIDATION).logits.numpy()
    np.testing.assert_allclose(
        np.load("cache/teacher/validation.npy"), expected, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(InputError, match="cache/teacher was made with another set of views"):
        cache.of("teacher", data.views, "center", None, CPU)
    cache.of("teacher", data.views, "online", None, CPU)
    assert "cache/teacher: the teacher runs along, on the cpu" in capsys.readouterr().out


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
