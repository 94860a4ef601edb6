"""Files appear whole or not at all."""

import errno
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from richkd import weights
from richkd.base.errors import InputError
from richkd.base.files import (
    fingerprint,
    remove_unfinished,
    replacing,
    sha256,
    write_array,
    write_json,
)
from richkd.base.records import read_json
from richkd.base.resume import Checkpoint
from richkd.data.dataset import Info, Split, load_info, load_split, save_info, save_split
from richkd.evaluate.seeds import write_training


def test_replacing_moves_the_finished_file_into_place(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with replacing(target) as part:
        part.write_text("whole")
        assert not target.exists() and part.parent == target.parent
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]


def test_safetensors_may_be_read_by_whoever_may_read_other_new_files(tmp_path):
    (tmp_path / "plain").touch()
    weights.save(tmp_path / "model", {"a": torch.zeros(2)}, {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as part:
        part.write_text("ha")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_an_error_before_the_first_byte_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "file.txt"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_no_space_left_keeps_the_old_file(tmp_path, monkeypatch):
    def fills_up(path, text):
        path.write_bytes(text[:3].encode())
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(Path, "write_text", fills_up)
    with pytest.raises(InputError, match="a.json could not be written: .*No space left on device"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_without_nan_and_infinity(tmp_path, value):
    with pytest.raises(InputError, match="a.json is not written: it would hold NaN or infinity"):
        write_json(tmp_path / "a.json", {"loss": [1.0, value]})
    assert not list(tmp_path.iterdir())


def test_json_gives_every_float_back(tmp_path):
    data = {"x": [0.1 + 0.2, 1e-300, -0.0], "y": None, "z": "ä"}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == json.loads(text) == data and text.endswith("}\n")


def test_arrays_keep_their_values_and_dtype(tmp_path):
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    loaded = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert loaded.dtype == np.float16 and np.array_equal(loaded, array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 0, 3), np.float16),
        np.array(5),
        np.array([True, False]),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    ],
)
def test_arrays_of_every_shape_and_order_are_as_numpy_saves_them(tmp_path, array):
    write_array(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", np.asarray(array, order="C"))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


def test_hashes_follow_from_the_content_alone(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    a, b, c = (sha256(tmp_path / name) for name in "abc")
    assert a == b != c and len(a) == 64
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    assert len({fingerprint({"x": 1}), fingerprint({"x": 2}), fingerprint("x", 1)}) == 3


def test_a_split_and_its_info_come_back(tmp_path, split):
    save_split(tmp_path / "train.safetensors", split)
    loaded = load_split(tmp_path / "train.safetensors")
    assert isinstance(loaded, Split) and loaded.images.dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(loaded, split))
    info = Info(name="digits", classes=["one", "two"], mean=[0.1] * 3, std=[0.3] * 3)
    for superclasses in ({}, {"one": "odd", "two": "even"}):
        info = replace(info, superclasses=superclasses)
        save_info(tmp_path / "info.json", info)
        assert load_info(tmp_path / "info.json") == info
        written = json.loads((tmp_path / "info.json").read_text())
        assert ("superclasses" in written) == bool(superclasses)


def test_class_names_that_somebody_has_changed_are_refused(tmp_path):
    """They would go on into the records of models."""
    path = tmp_path / "info.json"
    save_info(path, Info(name="digits", classes=["one", "two"], mean=[0.1] * 3, std=[0.3] * 3))
    path.write_text(path.read_text().replace('"two"', '"tw"'))
    with pytest.raises(InputError, match="info.json is damaged or of another version of this cod"):
        load_info(path)


@contextmanager
def no_space(size=4_000):
    """No file may grow beyond `size` bytes: the kernel refuses, as on a full disk.

    A fixture would limit pytest's own output, too, between a test and the fixture's end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TENSORS = {"a": torch.zeros(5_000)}
IMAGES = Split(np.zeros((100, 8, 8, 3), np.uint8), np.zeros(100, np.int64))
WRITERS = {
    "json": lambda: write_json("new/x.json", list(range(5_000))),
    "csv": lambda: write_training(
        "x", pd.DataFrame({"epoch": range(5_000), "seed": 0}), {"seed0": {"a": 1.0}}
    ),
    "array": lambda: write_array("new/x.npy", np.zeros(5_000)),
    "weights": lambda: weights.save("new/x", TENSORS, {}),
    "split": lambda: save_split("new/x.safetensors", IMAGES),
    "checkpoint": lambda: Checkpoint("x", "key").save(**TENSORS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_not_there(here, name):
    said = r"x\.(json|csv|npy|safetensors|pt) could not be written: File too large$"
    with pytest.raises(InputError, match=said), no_space():
        WRITERS[name]()
    assert not [path for path in here.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", WRITERS)
def test_no_file_is_cut_wherever_the_disk_is_full(here, name):
    """Libraries may lose the error of their last flush: so of a few bytes at the end."""
    WRITERS[name]()
    (path,) = (x for x in here.rglob("x.*") if x.stat().st_size > 4_000)
    size = path.stat().st_size
    path.unlink()
    for room in [0, 1, 100, *range(size - size % 4096 - 4096, size, 512), size - 64, size - 1]:
        with pytest.raises(InputError, match="File too large"), no_space(room):
            WRITERS[name]()
        assert not path.exists()
    assert not list(here.rglob("*.part"))
    with no_space(size):
        WRITERS[name]()
    assert path.stat().st_size == size


# --- what killed runs leave ---------------------------------------------------------------------


def killed(path):
    """A process that is killed while it writes `path`; its number."""
    code = f"""
import os
from richkd.base.files import replacing
with replacing({str(path)!r}) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], env=environment).returncode


def test_what_killed_runs_left_is_removed_and_counted(here, capsys):
    outputs = ["metrics/evaluate/a.json", "predictions/x/shifted/b.npy", "models/x/seed0.json"]
    for path in outputs:
        assert killed(path) == -9
    assert len(list(here.rglob("*.part"))) == 3
    remove_unfinished()
    assert not list(here.rglob("*.part"))
    assert "unfinished files of killed runs are removed: 3, m" in capsys.readouterr().out
    remove_unfinished()
    assert capsys.readouterr().out == ""


def test_what_a_running_process_or_another_machine_writes_is_left_alone(here):
    with replacing("metrics/a.json") as part:
        part.write_text("half")
        remove_unfinished()
    assert Path("metrics/a.json").read_text() == "half"
    elsewhere = Path("metrics/.a.json.another-machine.4194999.part")
    elsewhere.touch()
    remove_unfinished()
    assert elsewhere.exists()


def test_a_truncated_split_is_refused_by_name(tmp_path, split):
    path = tmp_path / "train.safetensors"
    save_split(path, split)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{path} is damaged"):
        load_split(path)


def test_a_truncated_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(InputError, match="a.json is damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_truncated_checkpoint_is_not_loaded(here, length):
    checkpoint = Checkpoint("x", "key")
    checkpoint.save(**TENSORS)
    assert checkpoint.load(torch.device("cpu")) is not None
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:length])
    assert checkpoint.load(torch.device("cpu")) is None
