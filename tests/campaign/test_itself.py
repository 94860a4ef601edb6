"""The campaign finds what is broken on purpose, and finds nothing where nothing is broken."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from campaign.forked import Action, Child, Ended, Limits, forked
from campaign.test_damage import damaged_resume
from campaign.test_full_disk import cut_short
from campaign.test_kills import kill_at, signalled
from campaign.test_pairs import at_once
from campaign.workspace import Step, copy, unbroken

pytestmark = pytest.mark.slow

STATE, OUT = Path(".resume/state.pt"), Path("out/result")
EPOCHS = 4


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("part")
    part.write_text(text)
    os.replace(part, path)


def train(save: Callable[[Path, str], object]) -> int:
    """A run of epochs that goes on from its state, and ends with their number."""
    network = torch.nn.Linear(1, 1)
    done = int(STATE.read_text()) if STATE.exists() else 0
    for epoch in range(done, EPOCHS):
        network(torch.ones(1, 1))
        save(STATE, str(epoch + 1))
    return EPOCHS


def sound() -> None:
    for part in Path("out").glob("part"):
        part.unlink()
    replace(OUT, 1000 * str(train(replace)))


def writes_in_place() -> None:
    """Its state is trusted though half of it may be there."""
    OUT.parent.mkdir(exist_ok=True)
    if not OUT.exists():
        with open(OUT, "w") as file:
            file.write(str(train(replace)))
            os.fsync(file)


def forgets_early() -> None:
    """The state is gone before the result is there."""
    train(replace)
    STATE.unlink()
    replace(OUT, "4")


def counts_twice() -> None:
    """What a run does depends on whether it was broken."""
    begun = STATE.exists()
    train(replace)
    replace(OUT, "went on" if begun else "at once")


def leaves_parts() -> None:
    replace(OUT.with_name(f"of process {os.getpid()}"), "x")
    os.remove(OUT.with_name(f"of process {os.getpid()}"))
    train(replace)


def made(tmp_path: Path, action: Action) -> Step:
    (tmp_path / "before/.resume").mkdir(parents=True)
    step = unbroken("toy", tmp_path / "before", tmp_path / "after", action)
    assert step.work == EPOCHS and step.interval == 2
    return step


def wrongs(tmp_path: Path, action: Action) -> set[str]:
    """What the kills find, at each change of a file, before it and in the middle of it."""
    step = made(tmp_path, action)
    found = set()
    for number in range(len(step.changes) + 1):
        for cut in (None, 0.5):
            broken, wrong = kill_at(step, tmp_path / "folder", number, cut)
            last = number == len(step.changes)
            assert broken.code == (0 if last else -signal.SIGKILL)
            if wrong:
                found.add(wrong[0])
    return found


@pytest.mark.parametrize(
    ("action", "finds"),
    [
        (sound, set()),
        (writes_in_place, {"other files than an unbroken run"}),
        (forgets_early, {"more work lost than between two saves"}),
        (counts_twice, {"other files than an unbroken run"}),
        (leaves_parts, {"other files than an unbroken run"}),
    ],
)
def test_kills_find(tmp_path: Path, action: Action, finds: set[str]) -> None:
    assert wrongs(tmp_path, action) == finds


@pytest.mark.parametrize(
    ("code", "err", "fault"),
    [
        (0, "", None),
        (0, "a: 50%|##  | 1/2 [00:00<00:01]\n", None),
        (1, "error: this is wrong\n", None),
        (1, "\ra: 50%|##  | 1/2 [00:00<00:01]\nerror: this is wrong\n", None),
        (1, "\ra: 50%|##  | 1/2 [00:00<00:01]error: this is wrong\n", "0 lines"),
        (1, "error: this\nis wrong\n", "2 lines"),
        (1, "this is wrong\n", "the line does not begin with 'error: '"),
        (1, "error: \x1b[31mwrong\n", "a character that cannot be printed"),
        (1, f"error: {301 * 'x'}\n", "a long line"),
        (1, "Traceback (most recent call last):\nValueError\n", "traceback"),
        (0, "Exception in thread:\nTraceback (most recent call last):\nValueError\n", "traceback"),
        (-11, "", "exit code -11"),
        (None, "", "no end in time"),
    ],
)
def test_an_end_is_judged(code: int | None, err: str, fault: str | None) -> None:
    assert Ended(code, "", err, 0.0, 0).fault == fault


def test_limits_and_crashes_are_seen(tmp_path: Path) -> None:
    def endless() -> None:
        while True:
            pass

    assert forked(tmp_path, endless, Limits(seconds=1)).fault == "no end in time"
    assert forked(tmp_path, lambda: time.sleep(60), Limits(seconds=0.2)).fault == "no end in time"
    greedy = forked(tmp_path, lambda: bytearray(10**9), Limits(memory=10**8))
    assert greedy.fault == "traceback" and greedy.reason == "MemoryError"
    assert forked(tmp_path, os.abort).fault == f"exit code {-signal.SIGABRT}"


def test_a_signal_that_is_answered_with_a_traceback(tmp_path: Path) -> None:
    from campaign import forked as module

    def answers() -> None:
        assert module._shared
        module._shared[8] = 1  # as a stage says that it has begun
        time.sleep(20)

    broken = Child(tmp_path, answers).wait((0.05, signal.SIGINT))
    wrong = signalled(broken, signal.SIGINT)
    assert wrong and wrong[0] == "a traceback after a signal"
    right = Ended(130, "", "interrupted; the same command goes on\n", 1.0, 0)
    assert signalled(right, signal.SIGINT) is None


def test_a_result_that_is_silently_another(tmp_path: Path) -> None:
    step = made(tmp_path, sound)
    ended = Ended(0, "", "", 0.0, 0)
    assert damaged_resume(step, step.after, ended, "emptied") is None
    (step.before / "more").write_text("x")
    assert damaged_resume(step, step.before, ended, "emptied") == "another result without a word"
    ended = Ended(1, "", "error: .resume/state.pt is damaged\n", 0.0, 0)
    assert damaged_resume(step, step.after, ended, "emptied") == "refused, each time again"


def test_a_cut_write(tmp_path: Path) -> None:
    step = made(tmp_path, sound)
    here = copy(step.before, tmp_path / "here")
    ended = forked(here, sound, Limits(file=0))
    told = f"out/result could not be written: {os.strerror(errno.EFBIG)}"

    def wrong(code: int, reason: str) -> str | None:
        return cut_short(step, here, code, None, reason)

    assert cut_short(step, here, 1, ended.fault, ended.reason) == "traceback"
    copy(step.before, here)
    assert wrong(1, told) is None
    assert wrong(1, "out/result: bad") == "the line does not give the system's reason"
    assert wrong(1, os.strerror(errno.EFBIG)) == "the line names no file"
    (here / "out").mkdir()
    (here / OUT).write_text("4")
    assert wrong(1, told) == "a file that is damaged"
    assert wrong(0, "") == "half a file, and exit code 0"


def test_two_at_once_are_two(tmp_path: Path) -> None:
    """Both are alive at the same time."""

    def meets() -> None:
        Path(str(os.getpid())).touch()
        end = time.monotonic() + 20
        while len(list(Path().iterdir())) < 2:
            assert time.monotonic() < end

    before = tmp_path / "before"
    before.mkdir()
    step = Step("toy", before, before, 1.0, 0, [], meets)
    assert [end.code for end in at_once(step, [before, before], 0.01)] == [0, 0]
