"""Locks of stages; checkpoints and tables that stay until DVC has recorded what came of them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs import LocalFileSystem

from richkd.base import kept
from richkd.base.errors import InputError

LOCK_FILE = Path("dvc.lock")


def dvc_says(folder, cache):
    """The hash that DVC itself gives a folder."""
    files = LocalFileSystem()
    _, _, made = build(HashFileDB(files, str(cache)), str(folder), files, "md5")
    return made.hash_info.value


@pytest.fixture
def finished(here):
    """A finished output, and the checkpoint and the table from which it could be made again."""
    for name in ("seed0.json", "seed0.safetensors", "deep/er.txt", "Ü.bin"):
        path = here / "models/LF" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    sources = [kept.FOLDER / "LF-seed0.pt", kept.FOLDER / "table"]
    sources[1].mkdir(parents=True)
    for path in (sources[0], sources[1] / "done"):
        path.write_text("x")
    kept.keep("models/LF", [*sources, kept.FOLDER / "never-made.pt"])
    return sources


def record(text, later=True):
    """Write dvc.lock, after the output was finished or before."""
    LOCK_FILE.write_text(text)
    moment = time.time_ns() + (10**9 if later else -(10**10))
    os.utime(LOCK_FILE, ns=(moment, moment))


def left(sources):
    return [path.exists() for path in sources]


def test_the_sources_go_once_dvc_has_recorded_the_output(finished, here):
    entry = f"    outs:\n    - path: models/LF\n      md5: {dvc_says('models/LF', here / 'c')}\n"
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [True, True]  # without dvc.lock
    record("    - path: models/LF\n      md5: 00000000000000000000000000000000.dir\n")
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [True, True]  # the entry is an older one
    record(entry, later=False)
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [True, True]  # the same bytes were recorded before
    record(entry)
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [False, False]
    assert not list(kept.FOLDER.glob("*"))


def test_a_note_that_another_stage_removes_meanwhile_is_passed_over(finished, here, monkeypatch):
    record(f"md5: {dvc_says('models/LF', here / 'c')}\n")
    (note,) = kept.FOLDER.glob("finished-*.json")
    read = kept.json.loads

    def other_stage_first(text):
        note.unlink()
        return read(text)

    monkeypatch.setattr(kept.json, "loads", other_stage_first)
    kept.remove_recorded(LOCK_FILE)
    assert not note.exists()


def test_an_output_that_is_made_again_keeps_its_sources(finished, here):
    record(f"md5: {dvc_says('models/LF', here / 'c')}\n")
    kept.forget("models/LF")
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [True, True]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "sources": []}', "\xff{"])
def test_a_damaged_note_removes_nothing(finished, text):
    record("md5: x\n")
    (note,) = kept.FOLDER.glob("finished-*.json")
    note.write_bytes(text.encode("latin1"))
    kept.remove_recorded(LOCK_FILE)
    assert left(finished) == [True, True] and not note.exists()


def test_an_output_without_sources_leaves_no_note(here):
    (here / "models").mkdir()
    kept.keep("models", [kept.FOLDER / "none.pt"])
    assert not kept.FOLDER.exists()


HOLD = """
import sys
from richkd.base import kept
with kept.lock("cache-clip"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_of_a_stage_is_refused_until_the_first_is_dead(here):
    environment = os.environ | {"PYTHONPATH": str(Path(kept.__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="^stage cache-clip: another run is at it$"):
            with kept.lock("cache-clip"):
                pytest.fail("two have the lock")
        with kept.lock("cache-teacher"):
            other.kill()
    with kept.lock("cache-clip") as held:
        held.release()  # for other processes that go on with the stage
        with kept.lock("cache-clip"):
            assert not held.is_locked
