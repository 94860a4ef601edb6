"""Checkpoints: what was saved comes back whole or not at all."""

import resource
import signal

import pytest
import torch

from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint

CPU = torch.device("cpu")
STATE = {"model": {"weight": torch.arange(300.0)}, "history": [{"epoch": 1, "loss": 0.5}]}


@pytest.fixture
def saved(here):
    checkpoint = Checkpoint("x", "key")
    checkpoint.save(**STATE)
    return checkpoint


def test_what_was_saved_comes_back(saved, capsys):
    found = saved.load(CPU)
    assert torch.equal(found["model"]["weight"], STATE["model"]["weight"])
    assert found["history"] == STATE["history"] and set(found) == set(STATE)
    assert capsys.readouterr().out == "continuing from .resume/x.pt\n"


def test_nothing_comes_back_for_another_key(saved, capsys):
    assert Checkpoint("x", "other").load(CPU) is None
    assert Checkpoint("y", "key").load(CPU) is None
    assert capsys.readouterr().out == ""


def test_any_flipped_bit_is_found(saved, capsys):
    content = saved.path.read_bytes()
    step = len(content) // 40
    positions = [*range(0, len(content), step), len(content) - 1]
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        saved.path.write_bytes(flipped)
        assert saved.load(CPU) is None
    said = capsys.readouterr().out.splitlines()
    assert said == [".resume/x.pt is damaged: starting anew"] * len(positions)


@pytest.mark.parametrize("size", [0, 10, 64, 500, -1])
def test_a_cut_file_is_found(saved, size):
    saved.path.write_bytes(saved.path.read_bytes()[:size])
    assert saved.load(CPU) is None


def test_a_full_disk_says_why_and_leaves_the_older_checkpoint(saved):
    before = saved.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"x\.pt could not be written: .*File too large"):
            saved.save(model={"weight": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.path.read_bytes() == before
    assert [path.name for path in saved.path.parent.iterdir()] == ["x.pt"]
