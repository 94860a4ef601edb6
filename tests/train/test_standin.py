"""What a training asks of a GPU, on a stand-in that executes no kernel but holds the rules."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
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
    # Two students, from the start and again from their checkpoints; six counted steps; one student
    # under streamed tables.
    assert sum(line.startswith("CAPTURE end") for line in log) == 4 + 6 + 1


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


def test_streamed_tables_are_sent_from_pinned_memory_without_waiting(log):
    lines = section(log, "streamed")
    replays = [i for i, line in enumerate(lines) if line.startswith("REPLAY")]
    assert len(replays) == 5
    between = lines[replays[0] : replays[-1]]
    sent = [line for line in between if line.startswith("MEMCPY P->D")]
    assert len(sent) == 4 * 4  # logits and features of both teachers, in each of four steps
    for waits in ("MEMCPY H", "MEMCPY D->H", "MEMCPY D->P", "SYNC", "DEVSYNC"):
        assert not [line for line in between if line.startswith(waits)]


def test_a_student_waits_for_each_batch_of_files(log):
    """A student's stream waits for an event that follows the copy of the batch's pixels."""
    copies, waited = Counter(), defaultdict(set)  # by the stream that copies
    followed = {}  # event: the stream that it was recorded on, and the copies there before it
    for line in section(log, "files"):
        if found := re.match(r"MEMCPY P->D 24576 async stream=(\d+)", line):  # 8 x 3 x 32 x 32
            copies[found[1]] += 1
        elif found := re.match(r"EVENT (\w+) (record|wait) stream=(\d+)", line):
            event, what, stream = found.groups()
            if what == "record":
                followed[event] = stream, copies[stream]
            elif event in followed and followed[event][0] != stream:
                waited[followed[event][0]].add(followed[event][1])
    assert len(copies) == 2  # each student's files have a stream of their own
    for stream, number in copies.items():
        assert number == 8  # two epochs of four batches
        assert waited[stream] >= set(range(1, 9))
