"""Making a cache: in one go, in shards, after a kill, by two processes; and what is refused."""

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import VALIDATION, build, shards, table
from torch import nn

from richkd import models
from richkd.base import distributed, kept
from richkd.base.errors import InputError
from richkd.base.files import sha256
from richkd.models import ModelOutput
from richkd.teachers import caching


@pytest.fixture(autouse=True)
def saved_after_every_batch(monkeypatch):
    monkeypatch.setattr(caching, "SAVE_EVERY", 0)


def content(name):
    folder = Path("cache") / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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
    assert not Path("cache/broken").exists()
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    build("broken", teacher, data)
    handle.remove()
    # One call tells the widths. Of the 18 views of 6 batches 39 are done. The validation images are
    # 2 batches.
    assert len(calls) == 1 + 18 * 6 - 39 + 2
    assert content("broken") == content("whole")


@pytest.mark.parametrize("calls", [0, 109, 110])  # before all, before validation, within it
def test_a_build_killed_anywhere_ends_where_the_unbroken_one_does(
    here, teacher, data, killed_after, calls
):
    build("whole", teacher, data)
    with killed_after(teacher, calls):
        build("broken", teacher, data)
    build("broken", teacher, data)
    assert content("broken") == content("whole")


def calls_of(teacher, work):
    """How often the teacher is called in `work`."""
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    try:
        work()
    finally:
        handle.remove()
    return len(calls)


ALL = 1 + 18 * 6 + 2  # calls: for the widths, of 18 views of 6 batches, of the validation images
DONE = 39  # batches that a build killed after 40 calls has done
WORK = caching.FOLDER / "cache-x"


def overwrite(path, position, content):
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(content)


def cut(name, size):
    return lambda: os.truncate(WORK / name, size)


DAMAGE = {
    "done is empty": cut("done", 0),
    "done is short": cut("done", 8 * 50),
    "done is long": cut("done", 8 * 200),
    "done is missing": lambda: (WORK / "done").unlink(),
    "a shard is empty": cut("logits-000.npy", 0),
    "a shard is short": cut("features-000.npy", 400),
    "a shard is long": cut("features-000.npy", 10**6),
    "a shard is missing": lambda: (WORK / "features-000.npy").unlink(),
    "a header is another one": lambda: overwrite(WORK / "logits-000.npy", 20, b"<f4"),
    "the key is empty": cut("progress.json", 0),
    "the key is cut": cut("progress.json", 5),
    "the key is not text": lambda: overwrite(WORK / "progress.json", 0, b"\xff\xfe"),
    "the key is no mapping": lambda: (WORK / "progress.json").write_text("3"),
    "the key is missing there": lambda: (WORK / "progress.json").write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_whole_starts_anew_and_that_is_said(
    here, teacher, data, killed_after, capsys, name
):
    build("whole", teacher, data)
    with killed_after(teacher, DONE + 1):
        build("x", teacher, data)
    DAMAGE[name]()
    capsys.readouterr()
    assert calls_of(teacher, lambda: build("x", teacher, data)) == ALL
    assert f"{WORK} is damaged: starting anew\n" in capsys.readouterr().out
    assert content("x") == content("whole")


ROW = 64 * 2  # bytes of a row of features
BATCHES = {
    "a flipped bit": (lambda: overwrite(WORK / "features-000.npy", caching.HEADER + 7, b"~"), 1),
    "a row of zeros": (
        lambda: overwrite(WORK / "features-000.npy", caching.HEADER + 22 * ROW, bytes(ROW)),
        1,
    ),
    "another checksum": (lambda: overwrite(WORK / "done", 8, b"\0\0"), 1),
    "two batches": (lambda: overwrite(WORK / "logits-000.npy", caching.HEADER, bytes(8 * 5)), 2),
}


@pytest.mark.parametrize("name", BATCHES)
def test_damaged_batches_are_done_again_and_that_is_said(
    here, teacher, data, killed_after, capsys, name
):
    build("whole", teacher, data)
    with killed_after(teacher, DONE + 1):
        build("x", teacher, data)
    damage, count = BATCHES[name]
    damage()
    capsys.readouterr()
    assert calls_of(teacher, lambda: build("x", teacher, data)) == ALL - DONE + count
    assert f"{WORK}: {count} batches are damaged and are done again\n" in capsys.readouterr().out
    assert content("x") == content("whole")


def test_a_finished_table_is_taken_again_until_it_is_recorded(here, teacher, data, capsys):
    build("x", teacher, data)
    made = content("x")
    assert Path("cache/x/logits-000.npy").samefile(WORK / "logits-000.npy")  # takes no space
    shutil.rmtree("cache/x")  # as DVC does before it runs a stage
    assert calls_of(teacher, lambda: build("x", teacher, data)) == 1 + 2
    assert content("x") == made
    assert f"continuing from {WORK}\n" in capsys.readouterr().out
    files = {name: hashlib.md5(content).hexdigest() for name, content in made.items()}
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    recorded = hashlib.md5(json.dumps(entries).encode()).hexdigest()
    Path("dvc.lock").write_text(f"      md5: {recorded}.dir\n")
    os.utime("dvc.lock", (2**32, 2**32))
    kept.remove_recorded(Path("dvc.lock"))
    assert content("x") == made and not list(caching.FOLDER.iterdir())


def test_a_finished_table_that_is_damaged_is_made_anew_and_its_links_stay(
    here, teacher, data, capsys
):
    build("x", teacher, data)
    made = content("x")
    os.link("cache/x/logits-000.npy", "linked")  # as DVC's cache may do
    overwrite("linked", caching.HEADER, b"~")
    damaged = Path("linked").read_bytes()
    assert calls_of(teacher, lambda: build("x", teacher, data)) == ALL
    assert f"{WORK} is damaged: starting anew\n" in capsys.readouterr().out
    assert content("x") == made and Path("linked").read_bytes() == damaged


def test_a_table_whose_last_step_fails_is_not_lost(here, teacher, data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    build("whole", teacher, data)
    with monkeypatch.context() as patched:
        patched.setattr(caching, "write_array", full)  # the first of the last steps
        with pytest.raises(OSError, match="No space left"):
            build("x", teacher, data)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)  # the last one
        with pytest.raises(OSError, match="No space left"):
            build("x", teacher, data)
    assert calls_of(teacher, lambda: build("x", teacher, data)) == 1 + 2
    assert content("x") == content("whole")


def test_a_table_on_another_disk_is_copied(here, teacher, data, monkeypatch):
    def elsewhere(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    build("whole", teacher, data)
    monkeypatch.setattr(caching.os, "link", elsewhere)
    build("x", teacher, data)
    assert content("x") == content("whole")
    assert sorted(path.name for path in Path("cache").iterdir()) == ["whole", "x"]
    with monkeypatch.context() as patched:
        patched.setattr(caching.shutil, "copyfile", elsewhere)
        with pytest.raises(OSError):
            build("x", teacher, data)
    # The older table stays, and nothing half-made.
    assert content("x") == content("whole")
    assert sorted(path.name for path in Path("cache").iterdir()) == ["whole", "x"]


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
    files = ("features-000.npy", "logits-000.npy", "validation.npy")
    hashes = {name: sha256(f"cache/x/{name}") for name in files}
    made = json.loads(Path("cache/x/cache.json").read_text())
    assert made == {"a": 2, "shape": shape, "content": hashes}


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture
def few_saves(monkeypatch):
    """Flushing hundreds of files after every batch takes seconds."""
    monkeypatch.setattr(caching, "SAVE_EVERY", 5)


def test_shards_hold_the_rows_of_one_file(
    few_saves, small_shards, here, teacher, data, monkeypatch
):
    build("x", teacher, data)
    assert [len(x) for x in shards("x", "logits")] == [80] * 4 + [76]
    assert [len(x) for x in shards("x", "features")] == [5] * 79 + [1]
    sizes = [path.stat().st_size for path in Path("cache/x").glob("*-*.npy")]
    assert max(sizes) == caching.SHARD_BYTES
    monkeypatch.setattr(caching, "SHARD_BYTES", 256_000_000)
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
    """Call `work` in two threads that play two processes; raises what one of them raises."""
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
    assert not Path("cache/two").exists()
    together(monkeypatch, lambda: build("two", teacher, data, FEW))
    handle.remove()
    assert content("two") == content("one")
    # Both processes call twice for the widths and run the validation images. No batch runs twice.
    assert len(calls) == 2 * 2 + 5 * 6 + 2 * 2


@pytest.mark.parametrize(("classes", "kind"), [(2**15, np.int16), (2**15 + 1, np.int32)])
def test_classes_take_16_bits_if_their_number_allows(here, data, classes, kind):
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
def test_a_top_k_of_all_classes_is_refused(here, teacher, data, top_k):
    with pytest.raises(InputError) as caught:
        build("x", teacher, data, top_k=top_k)
    assert str(caught.value) == f"cache.top_k is {top_k}: must be below the number of classes, 4"
    assert not Path("cache").exists() and not caching.FOLDER.exists()


def test_building_an_online_cache_runs_the_validation_images_alone(here, teacher, data):
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    build("x", teacher, data, [])
    handle.remove()
    assert len(calls) == 1 + 2  # one call tells the widths


# --- sizes --------------------------------------------------------------------------------------


def test_sizes_are_said_before_the_work_starts(here, teacher, data, killed_after, capsys):
    with killed_after(teacher, 1):  # the call that tells the widths
        build("teacher", teacher, data)
    said = capsys.readouterr().out
    assert "logits 396 × 4, features 396 × 64 in 16 bits: 0.1 MB, and as much in" in said


def test_too_little_disk_is_an_error_before_the_work(here, teacher, data, monkeypatch):
    needed = 2 * 2 * 18 * 22 * (4 + 64)
    usage = caching.shutil.disk_usage(here)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match="a cache of 0.1 MB, and as much in DVC's, do not fit on"):
        build("teacher", teacher, data)
    handle.remove()
    assert len(calls) == 1 and not Path("cache").exists()


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_values_that_16_bits_cannot_hold_are_refused(here, teacher, data, value):
    def spoil(module, inputs, output):
        output.features[-1, 3] = value

    handle = teacher.register_forward_hook(spoil)
    with pytest.raises(
        InputError, match="cache/x: the features of images 0 to 3 are not finite, or"
    ):
        build("x", teacher, data)
    handle.remove()
    assert not Path("cache").exists()


def test_a_full_device_says_what_to_lower(here, teacher, data, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    build("x", teacher, data)
    monkeypatch.setattr(caching, "_rows", full)
    with pytest.raises(InputError, match="out of memory: lower cache.batch_size"):
        build("teacher", teacher, data)


def test_a_disk_too_small_is_an_error_before_the_work(here, teacher, data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="logits-000.npy could not be written: No space left"):
        build("teacher", teacher, data)
    assert not Path("cache").exists()


def test_a_disk_that_fills_up_meanwhile_is_one_line(here, teacher, data, monkeypatch):
    monkeypatch.setattr(caching.os, "pwrite", lambda *_: 7)
    with pytest.raises(InputError, match=r"logits-000\.npy could not be written"):
        build("teacher", teacher, data)
    assert not Path("cache/teacher").exists()
