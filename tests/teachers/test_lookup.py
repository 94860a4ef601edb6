"""A lookup gives what running the teacher gives, and a cache is used for nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import VALIDATION, build, shards, table
from torch.nn import functional as F
from toys import SCALES

from richkd import losses, models, weights
from richkd.base.errors import InputError
from richkd.base.files import write_json
from richkd.base.records import read_json
from richkd.classifiers import Loaded, save_classifier
from richkd.data.dataset import save_split
from richkd.data.resident import ResidentSet
from richkd.data.views import Preprocessing, RandomResizedCrop, Views
from richkd.teachers import caching, lookup
from richkd.teachers.fusion import Recipe, table_fingerprints
from richkd.teachers.table import Shards, Streamed, Table

CPU = torch.device("cpu")
CUT = {"interpolation": "bicubic", "resize_mode": "shortest", "fill": 0}


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


@pytest.fixture
def made(here, split, teacher, data):
    """Both teachers, the table of each with all that it is made from in place, and a recipe."""
    save_split(lookup.TRAIN, split)
    look = {"mean": [0.5] * 3, "std": [0.2] * 3}
    clip = {
        "kind": "clip",
        "model": "RN50",
        "quick_gelu": False,
        "embed_dim": 8,
        "input": {"size": 8, **CUT, **look},
        "classes": ["a", "b", "c", "d"],
        "prompts": ["a photo of {}"],
        "scale": 10.0,
    }
    classifier = {"kind": "classifier", "arch": "resnet8", "num_classes": 4, **look}
    for name, record in (("teacher", classifier), ("clip", clip)):
        record |= {"center": None, **weights.provenance(CPU)}
        weights.save(f"models/{name}/seed0", teacher.state_dict(), record)
        made_from = lookup.identity(Path(f"models/{name}/seed0"), data.views, "all", None)
        build(name, teacher, data, made_from=made_from)
    Recipe(0.4, 0.3, SCALES, table_fingerprints()).save()


def opened(data, name="clip", parts=("logits", "features"), views=None):
    return lookup.open_teacher(name, views or data.views, CPU, parts)


def test_a_cache_is_used_where_nothing_changed(made, teacher, data):
    ids, views = torch.tensor([1, 2]), torch.tensor([3, 4])
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    for name in ("teacher", "clip"):
        same(opened(data, name), ids, views, expected)


def test_a_cache_beside_random_crops_is_used_where_these_are_the_same(made, teacher, data):
    crops = RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True)
    made_from = lookup.identity(Path("models/clip/seed0"), crops, "center", None)
    build("clip", teacher, data, [data.views.center], made_from=made_from)
    opened(data, views=crops)
    crops.ratio = (0.7, 1.5)
    with pytest.raises(InputError, match="cache/clip was made with another set of views"):
        opened(data, views=crops)


CHANGED_VIEWS = {
    "pad": (Views(8, 8, 2, True), "'pad': 1", "'pad': 2"),
    "flip": (Views(8, 8, 1, False), "'flip': True", "'flip': False"),
    "augmentation": (
        RandomResizedCrop(8, (0.1, 1.0), (0.7, 1.4), True),
        "'pad': 1",
        "'scale': [0.1, 1.0]",
    ),
}


@pytest.mark.parametrize("name", CHANGED_VIEWS)
@pytest.mark.parametrize("model", ["clip", "fused"])
def test_a_cache_of_other_views_is_refused_by_name(made, data, name, model):
    views, had, needed = CHANGED_VIEWS[name]
    with pytest.raises(InputError) as caught:
        opened(data, model, views=views)
    message, table = str(caught.value), "teacher" if model == "fused" else model
    assert message.startswith(f"cache/{table} was made with another set of views (")
    assert message.endswith(f": run `dvc repro cache@{table}`") and "\n" not in message
    assert had in message.split("needed is")[0] and needed in message.split("needed is")[1]


CHANGED_RECORDS = {
    "prompts": ({"prompts": ["a {}"]}, "prompts", "['a photo of {}']", "['a {}']"),
    "scale": ({"scale": 20.0}, "logit scale", "10.0", "20.0"),
    "input": ({"mean": [0.1]}, "input of the teacher", "'mean': None", "'mean': [0.1]"),
}


@pytest.mark.parametrize("name", CHANGED_RECORDS)
def test_a_cache_of_a_teacher_that_answers_otherwise_is_refused(made, data, name):
    changes, part, had, needed = CHANGED_RECORDS[name]
    record = read_json("models/clip/seed0.json")
    write_json("models/clip/seed0.json", record | changes)
    with pytest.raises(InputError) as caught:
        opened(data)
    message = str(caught.value)
    assert message.startswith(f"cache/clip was made with another {part} (") and "\n" not in message
    assert had in message.split("needed is")[0] and needed in message.split("needed is")[1]


def test_a_cache_of_another_data_set_is_refused(made, data, split):
    save_split(lookup.TRAIN, split._replace(images=split.images + 1))
    with pytest.raises(InputError, match="cache/clip was made with another data set"):
        opened(data)


def test_a_cache_of_another_teacher_is_refused(made, data):
    record = read_json("models/clip/seed0.json")
    weights.save("models/clip/seed0", models.create("resnet8", 4).state_dict(), record)
    with pytest.raises(InputError, match="cache/clip was made with another teacher"):
        opened(data)


def test_a_cache_whose_teacher_is_gone_is_refused(made, data):
    Path("models/clip/seed0.json").unlink()
    with pytest.raises(InputError, match="models/clip holds no model"):
        opened(data)


def test_a_cache_that_is_not_there_is_named(made, data):
    Path("cache/clip/cache.json").unlink()
    with pytest.raises(InputError, match="cache/clip/cache.json could not be read: No such file"):
        opened(data)


# --- the fused teacher --------------------------------------------------------------------------


def test_the_fused_teacher_is_opened_like_any_other(made, data):
    fused, teacher, clip = (opened(data, name) for name in ("fused", "teacher", "clip"))
    ids, views = torch.tensor([1, 2, 21]), torch.tensor([3, 4, 17])
    mixed = 0.4 * teacher.logits(ids, views) + 0.6 * clip.logits(ids, views)
    torch.testing.assert_close(fused.logits(ids, views), mixed)
    assert fused.feature_dim == fused.features(ids, views).shape[1] == 128


@pytest.mark.parametrize("name", ["teacher", "clip"])
def test_a_recipe_of_another_table_is_refused(made, data, name):
    record = read_json(f"cache/{name}/cache.json")
    write_json(f"cache/{name}/cache.json", record | {"made": "anew"})
    said = f"cache/fused/fused.json was made of another cache/{name}: run `dvc repro fusion`"
    with pytest.raises(InputError, match=re.escape(said)):
        opened(data, "fused")


def test_a_recipe_that_is_not_there_is_one_line(made, data):
    Path("cache/fused/fused.json").unlink()
    said = "cache/fused/fused.json is not there: run `dvc repro fusion`"
    with pytest.raises(InputError, match=re.escape(said)):
        opened(data, "fused")


def test_files_of_another_version_are_one_line(made, data):
    write_json("cache/fused/fused.json", {"alpha": 0.5})
    said = "cache/fused/fused.json is damaged or of another version of this code (lam: Field req"
    with pytest.raises(InputError, match=re.escape(said)):
        opened(data, "fused")
    write_json("cache/clip/cache.json", {"shape": {}})
    said = "cache/clip/cache.json is damaged or of another version of this code (set of views: F"
    with pytest.raises(InputError, match=re.escape(said)):
        opened(data)


def test_a_recipe_is_of_what_its_tables_hold(made, teacher, data):
    """Another code or precision may give other rows from the same teacher and images."""
    before = table_fingerprints()
    with torch.no_grad():
        teacher.fc.bias[0] += 0.5
    made_from = lookup.identity(Path("models/clip/seed0"), data.views, "all", None)
    build("clip", teacher, data, made_from=made_from, key="another")
    with torch.no_grad():
        teacher.fc.bias[0] -= 0.5
    after = table_fingerprints()
    assert after["teacher"] == before["teacher"] and after["clip"] != before["clip"]


@pytest.mark.parametrize(("name", "table"), [("teacher", "teacher"), ("fused", "teacher")])
def test_a_table_has_no_feature_maps(made, data, name, table):
    said = f"cache/{table} is a table and has no feature maps: set cache.{table}: online"
    with pytest.raises(InputError, match=said):
        opened(data, name, ["maps"])


# --- on the device, or streamed -----------------------------------------------------------------


def parts(views=18):
    draw = torch.Generator().manual_seed(0)
    shapes = {"logits": (views, 22, 4), "features": (views, 22, 6)}
    return {name: torch.randn(shape, generator=draw).half() for name, shape in shapes.items()}


def cut(tensors, rows=1000):
    """In shards of so many rows."""
    return {name: list(x.flatten(0, 1).split(rows)) for name, x in tensors.items()}


def streamed_table(views=18, rows=1000):
    return Streamed(Shards(cut(parts(views), rows), views, 22, 4), CPU)


@pytest.mark.parametrize("rows", [1000, 7])  # a shard, and several
@pytest.mark.parametrize("views", [18, 1])
def test_a_streamed_table_answers_for_the_batch_that_has_begun(views, rows):
    whole, streamed = Table(parts(views), 4), streamed_table(views, rows)
    assert streamed.feature_dim == whole.feature_dim == 6
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):  # epochs
        batches = [
            (torch.randint(22, (n,), generator=draw), torch.randint(18, (n,), generator=draw))
            for n in (5, 5, 5, 5, 5, 5, 3)  # more than are gathered ahead
        ]
        streamed.begin_epoch(batches)
        for batch in batches:
            streamed.next_batch()
            for part in ("logits", "features"):
                found = getattr(streamed, part)(*batch)
                assert found.dtype == torch.float32
                assert torch.equal(found, getattr(whole, part)(*batch))


def test_a_streamed_table_answers_from_the_same_memory():
    streamed = streamed_table()
    ids = torch.arange(4)
    streamed.begin_epoch([(ids, ids), (ids[:2], ids[:2])])
    places = set()
    for _ in range(2):
        streamed.next_batch()
        places.add(streamed.parts["logits"].data_ptr())
    assert len(places) == 1


def test_readers_of_one_streamed_table_have_batches_of_their_own(data):
    streamed = streamed_table()
    first, second = streamed.reader(data), streamed.reader(data)
    ids = torch.arange(4)
    first.begin_epoch([(ids, ids)])
    second.begin_epoch([(ids + 7, ids)])
    first.next_batch()
    second.next_batch()
    assert torch.equal(first.logits(ids, ids), Table(parts(), 4).logits(ids, ids))
    assert not torch.equal(first.logits(ids, ids), second.logits(ids, ids))


def test_what_fails_as_rows_are_gathered_fails_the_run():
    streamed = streamed_table()
    streamed.begin_epoch([(torch.tensor([99]), torch.tensor([17]))])
    with pytest.raises(IndexError):
        streamed.next_batch()


@pytest.mark.parametrize(("free", "kind"), [(2, Table), (1.9, Streamed)])
def test_a_table_is_streamed_where_it_takes_more_than_half_of_a_device(monkeypatch, free, kind):
    size = sum(x.nbytes for x in parts().values())
    monkeypatch.setattr(lookup, "free_memory", lambda device: free * size)
    for rows in (1000, 7):
        shards = Shards(cut(parts(), rows), 18, 22, 4)
        assert type(lookup.put_on_device(shards, torch.device("meta"))) is kind


@pytest.mark.parametrize(("rows", "kind"), [(1000, Table), (7, Streamed)])
@pytest.mark.parametrize("views", [18, 1])
def test_on_a_cpu_a_table_of_one_file_is_mapped_and_one_of_several_streamed(views, rows, kind):
    found = lookup.put_on_device(Shards(cut(parts(views), rows), views, 22, 4), CPU)
    batch = torch.tensor([21, 3, 3, 0]), torch.tensor([0, 17, 2, 9])
    found.begin_epoch([batch])
    found.next_batch()
    assert type(found) is kind
    assert torch.equal(found.logits(*batch), Table(parts(views), 4).logits(*batch))


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1000, 7])
@pytest.mark.parametrize("views", [18, 1])
def test_a_table_on_a_gpu_is_whole_whatever_the_shards(views, rows):
    found = lookup.put_on_device(
        Shards(cut(parts(views), rows), views, 22, 4), torch.device("cuda")
    )
    assert type(found) is Table
    assert all(torch.equal(x.cpu(), parts(views)[name]) for name, x in found.parts.items())


def test_a_variant_reads_its_parts_alone(made, data, capsys):
    Path("cache/clip/features-000.npy").unlink()
    table = opened(data, parts=["logits"])
    assert list(table.parts) == ["logits"]
    assert "cache/clip: 0.0 MB of logits, on the cpu" in capsys.readouterr().out


def test_a_cache_in_shards_is_used_as_one_in_a_file(small_shards, made, teacher, data):
    ids, views = torch.tensor([1, 2, 21, 0]), torch.tensor([3, 4, 17, 0])
    found = opened(data).reader(data)
    assert type(found) is Streamed
    found.begin_epoch([(ids, views)])
    found.next_batch()
    with torch.no_grad():
        expected = teacher(data.batch(ids, views))
    same(found, ids, views, expected)


def test_shards_are_read_in_order_beyond_a_thousand(here):
    names = [f"features-{number:03}.npy" for number in (999, 1000, 101, 2)]
    for number, name in zip((999, 1000, 101, 2), names):
        np.save(name, np.full((1, 1), number, np.float16))
    shape = {"views": 1, "images": 4, "classes": 2}
    record = {"shape": shape, "top k": None, "content": dict.fromkeys(names, "hash")}
    shards = lookup._mapped(here, "features", record)
    assert [int(x[0, 0]) for x in shards] == [2, 101, 999, 1000]


def test_a_table_that_is_not_whole_is_refused_by_name(made, data, small_shards, teacher):
    made_from = lookup.identity(Path("models/clip/seed0"), data.views, "all", None)
    build("clip", teacher, data, made_from=made_from, key="small")
    opened(data)
    path = Path("cache/clip/logits-001.npy")
    whole = path.read_bytes()
    rows = np.load(path)
    for change, said in {
        "gone": "logits-001.npy could not be read: No such file",
        "cut": "logits-001.npy is damaged",
        "shorter": "cache/clip has not the 396 rows of logits that its cache.json says",
        "wider": r"logits-001.npy holds float16 \(80, 5\): must be float16 \(any, 4\)",
        "doubles": r"logits-001.npy holds float64 \(80, 4\): must be float16 \(any, 4\)",
    }.items():
        path.unlink(missing_ok=True)
        if change == "cut":
            path.write_bytes(whole[:-1])
        elif change != "gone":
            changed = {"shorter": rows[1:], "wider": np.pad(rows, ((0, 0), (0, 1)))}
            np.save(path, changed.get(change, rows.astype(float)))
        with pytest.raises(InputError, match=said):
            opened(data)


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


def saved(model, arch, classes, preprocessing):
    loaded = Loaded(model, preprocessing)
    save_classifier("models/teacher/seed0", loaded, CPU, arch=arch, num_classes=classes)
    return Path("models/teacher/seed0")


@pytest.mark.parametrize("size", [caching.SHARD_BYTES, 1024])  # a file a part, or several
def test_a_cache_of_the_largest_says_itself_how_many_these_are(
    here, split, sharp, data, monkeypatch, size
):
    monkeypatch.setattr(caching, "SHARD_BYTES", size)
    model, _ = sharp
    save_split(lookup.TRAIN, split)
    path = saved(model, "resnet8", 10, data.preprocessing)
    made_from = lookup.identity(path, data.views, "all", 3)
    build("teacher", model, data, made_from=made_from, top_k=3)
    found = opened(data, "teacher", ["logits"]).reader(data)
    ids, views = torch.tensor([21, 3, 3, 0]), torch.tensor([0, 17, 2, 9])
    found.begin_epoch([(ids, views)])
    found.next_batch()
    assert set(found.parts) == {"logits", "classes"}
    assert torch.equal(found.logits(ids, views), table("teacher", 10).logits(ids, views))


# --- a teacher that runs along ------------------------------------------------------------------


@pytest.fixture(params=["the student's", "its own"])
def online(request, here, split, sharp, data):
    """A teacher that runs along, and the table of all its views: whatever its normalisation."""
    look = data.preprocessing
    if request.param == "its own":
        look = Preprocessing([0.1, 0.6, 0.45], [0.5, 0.25, 0.3])
    model, _ = sharp
    save_split(lookup.TRAIN, split)
    path = saved(model, "resnet8", 10, look)
    build("table", model, ResidentSet(split, look, data.views, CPU))
    build("teacher", model, data, [], made_from=lookup.identity(path, data.views, "online", None))
    return opened(data, "teacher"), table("table")


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
        opened(data, "teacher", views=Views(8, 8, 2, True))
    opened(data, "teacher")
    assert "cache/teacher: the teacher runs along, on the cpu" in capsys.readouterr().out


def test_a_teacher_that_runs_along_teaches_as_the_table_of_all_views(online, data):
    teacher, found = online[0].reader(data), online[1]
    assert teacher.feature_dim == found.feature_dim
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        ids, views = torch.randint(22, (64,), generator=draw), data.views.sample(64, draw)
        teacher.begin_epoch([(ids, views)])
        teacher.next_batch()
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
            teacher.next_batch()
        for number, teacher in enumerate((first, second)):
            found = [teacher.logits(ids + number, ids), teacher.features(ids + number, ids)]
            assert not any(x.requires_grad for x in found)
            assert {x.dtype for x in found} == {torch.float32}
            assert calls == [(False, False)] * (2 * turn + number + 1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
