"""Files appear whole or not at all."""

import errno
import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from richkd import weights
from richkd.base.errors import InputError
from richkd.base.files import fingerprint, read_json, replacing, sha256, write_array, write_json
from richkd.base.resume import Checkpoint
from richkd.data.dataset import Info, Split, load_info, load_split, save_info, save_split


def test_replacing_moves_the_finished_file_into_place(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with replacing(target) as part:
        part.write_text("whole")
        assert not target.exists() and part.parent == target.parent
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]


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
    with pytest.raises(ValueError):
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
    save_info(tmp_path / "info.json", info)
    assert load_info(tmp_path / "info.json") == info


@contextmanager
def no_space():
    """No file may grow beyond 4,000 bytes: the kernel refuses, as on a full disk.

    A fixture would limit pytest's own output, too, between a test and the fixture's end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TENSORS = {"a": torch.zeros(5_000)}
IMAGES = Split(np.zeros((100, 8, 8, 3), np.uint8), np.zeros(100, np.int64))
WRITERS = {
    "json": lambda: write_json("new/x.json", list(range(5_000))),
    "array": lambda: write_array("new/x.npy", np.zeros(5_000)),
    "weights": lambda: weights.save("new/x", TENSORS, {}),
    "split": lambda: save_split("new/x.safetensors", IMAGES),
    "checkpoint": lambda: Checkpoint("x", "key").save(**TENSORS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_not_there(here, name):
    with pytest.raises(InputError, match=r"x\.(json|npy|safetensors|pt)"), no_space():
        WRITERS[name]()
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_a_truncated_split_is_refused_by_name(tmp_path, split):
    path = tmp_path / "train.safetensors"
    save_split(path, split)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{path} is not whole"):
        load_split(path)


def test_a_truncated_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(InputError, match="a.json is not whole"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_truncated_checkpoint_is_not_loaded(here, length):
    checkpoint = Checkpoint("x", "key")
    checkpoint.save(**TENSORS)
    assert checkpoint.load(torch.device("cpu")) is not None
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:length])
    assert checkpoint.load(torch.device("cpu")) is None
