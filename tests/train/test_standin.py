"""What a training asks of a GPU, on a stand-in that executes no kernel but holds the rules."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT.parent / "shared" / "nullgpu"
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The stand-in's log of `standin_steps.py`, by lines."""
    for there, needed in (
        (SOURCE.exists(), f"{SOURCE}, the stand-in for a GPU"),
        (shutil.which("g++") and shutil.which("gcc"), "g++ and gcc"),
        ((HEADERS / "cuda_runtime_api.h").exists(), f"CUDA's headers in {HEADERS}"),
    ):
        if not there:
            pytest.skip(f"needs {needed}")
    folder = tmp_path_factory.mktemp("standin") / "nullgpu"
    shutil.copytree(SOURCE, folder)
    built = subprocess.run(
        ["sh", folder / "build.sh", HEADERS], capture_output=True, text=True, check=False
    )
    if "built" not in built.stdout:
        pytest.skip(f"the stand-in does not build with the headers in {HEADERS}: {built.stderr}")
    work, script = folder.parent / "work", Path(__file__).with_name("standin_steps.py")
    work.mkdir()
    path = os.pathsep.join(map(str, (ROOT, folder)))
    done = subprocess.run(
        ["sh", folder / "ng", folder / "log", sys.executable, script],
        cwd=work,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
    assert "deprecated" not in done.stderr
    return (folder / "log").read_text().splitlines()


def section(log, name):
    """The lines after the mark `name`, to the next mark."""
    start = log.index(f"MARK {name}") + 1
    return log[start : next(i for i in range(start, len(log)) if log[i].startswith("MARK"))]


def captured(log, name):
    (line,) = (line for line in section(log, name) if line.startswith("CAPTURE end"))
    return int(re.search(r"kernels=(\d+)", line)[1])


def test_nothing_is_asked_for_that_a_capture_forbids(log):
    assert not [line for line in log if "VIOLATION" in line or "INVALID" in line]
    # Two students, from the start and again from their checkpoints; six counted steps.
    assert sum(line.startswith("CAPTURE end") for line in log) == 4 + 6


@pytest.mark.parametrize(
    ("step", "most"),
    [
        # With BatchNorm as cuDNN has it, one kernel there and one back.
        ("cudnn L auto", 110),
        ("cudnn LF auto", 182),
        ("cudnn LF all", 181),
        # With torch's own, which takes four and three.
        ("torch L auto", 160),
        ("torch LF auto", 232),
    ],
)
def test_kernels_of_a_step(log, step, most):
    assert 90 < captured(log, step) <= most


def test_nothing_but_the_indices_stands_beside_a_replay(log):
    """The marks `replays` follow L, LF and LF with all negatives."""
    starts = [i for i, line in enumerate(log) if line == "MARK replays"][:3]
    for start, with_a_generator in zip(starts, (False, True, False), strict=True):
        lines = log[start : log.index("MARK end", start)]
        first = next(i for i, line in enumerate(lines) if line.startswith("REPLAY"))
        rest = lines[: first + 1]
        kernels = [line for line in rest if line.startswith("K ")]
        # The copy of both index vectors; torch itself sends a generator's seed and offset.
        assert len(kernels) == 1 + 2 * with_a_generator
        assert not [line for line in rest if line.startswith("MEMCPY")]
