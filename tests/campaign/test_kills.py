"""Stages that die at a change of a file, or get a signal, and are then started again.

The second run must end in the bytes of an unbroken one and lose no more than the work between two
saves. A kill after the last change is one before DVC has recorded the stage.
"""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign.forked import Child, Ended, Limits, forked, one_plain_line, watched
from campaign.workspace import Faults, Step, copy, differing, spread

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=120)


def again(step: Step, folder: Path, killed: list[Ended]) -> tuple[str, str] | None:
    """Run the stage to its end after the broken runs; what does not hold, and an example."""
    last = forked(folder, step.action, LIMITS)
    if last.code != 0:
        return f"does not go on ({last.fault or 'refused'})", last.reason
    if others := differing(folder, step.after):
        return "other files than an unbroken run", ", ".join(others[:3])
    lost = last.work + sum(run.work for run in killed) - step.work
    if lost > len(killed) * step.interval:
        most = len(killed) * step.interval
        return "more work lost than between two saves", f"{lost} calls of a network, at most {most}"
    return None


def kill_at(
    step: Step, folder: Path, number: int, cut: float | None
) -> tuple[Ended, tuple[str, str] | None]:
    """Kill the stage at its change of this number, in a copy of its folder; run it again."""
    copy(step.before, folder)
    broken = forked(folder, watched(step.action, folder.parent / "log", number, cut), LIMITS)
    return broken, again(step, folder, [broken])


def test_killed_at_a_change_of_a_file(
    steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]
) -> None:
    rng = random.Random(0)
    faults = Faults("kills at a change of a file")
    for step in spread(steps, times(54), rng):
        number = rng.randint(0, len(step.changes))
        cut = rng.random() if rng.random() < 0.4 else None
        broken, wrong = kill_at(step, tmp_path / "folder", number, cut)
        last = number == len(step.changes)
        change = None if last else step.changes[number]
        where = f"{step.name} at {change.kind} {change.path}" if change else f"{step.name} at end"
        if broken.code != (0 if last else -signal.SIGKILL):
            faults.add("changes files in another order", f"{where}: exit code {broken.code}")
        elif wrong:
            faults.add(wrong[0], f"{where} (change {number}, cut {cut}): {wrong[1]}")
        else:
            faults.hold("the same at last" if change else "the same after an end")
    faults.tell()


def test_killed_twice(steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]) -> None:
    """The second kill hits a run that goes on."""
    rng = random.Random(1)
    faults = Faults("two kills in a row")
    for step in spread(steps, times(8), rng):
        folder = copy(step.before, tmp_path / "folder")
        numbers = [rng.randrange(len(step.changes)) for _ in range(2)]
        killed = [
            forked(folder, watched(step.action, tmp_path / "log", n), LIMITS) for n in numbers
        ]
        if wrong := again(step, folder, killed):
            faults.add(wrong[0], f"{step.name} at changes {numbers}: {wrong[1]}")
        else:
            faults.hold("the same at last")
    faults.tell()


def test_signals(steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]) -> None:
    """Ctrl-C and SIGTERM at any moment: one line, and the exit code by which a shell knows them."""
    rng = random.Random(2)
    faults = Faults("SIGINT and SIGTERM")
    for step in spread(steps, times(24), rng):
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        after = rng.uniform(0.03, step.seconds)
        folder = copy(step.before, tmp_path / "folder")
        broken = Child(folder, step.action, LIMITS).wait((after, number))
        where = f"{step.name}, {number.name} after {after:.2f} s"
        if wrong := signalled(broken, number) or again(step, folder, [broken]):
            faults.add(wrong[0], f"{where}: {wrong[1]}")
        else:
            faults.hold("one line, the same at last" if broken.code else "over before the signal")
    faults.tell()


def signalled(broken: Ended, number: signal.Signals) -> tuple[str, str] | None:
    """What is wrong with the end of a run that got this signal."""
    if broken.code == 0:
        return None
    if "Traceback (most recent call last)" in broken.err:
        return "a traceback after a signal", f"{len(broken.lines)} lines"
    if broken.code not in (128 + number, -number):
        return f"{number.name} ends with code {broken.code}", broken.reason
    if wrong := one_plain_line(broken.lines, "interrupted"):
        return f"a signal's line: {wrong}", broken.reason
    return None
