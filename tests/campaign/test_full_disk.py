"""A disk that takes no more bytes in a file: one line that names it, and nothing half written.

The limit is the process's own, so that no disk has to be filled: the system refuses a file that
grows beyond it, in the middle of a write. Then the stage runs again, without a limit.
"""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign.forked import Limits, forked
from campaign.workspace import Faults, Step, content, copy, differing, spread

pytestmark = pytest.mark.slow

REASONS = [os.strerror(number) for number in (errno.EFBIG, errno.ENOSPC)]


def written(step: Step) -> dict[str, int]:
    """The files that a stage makes, and their sizes."""
    before, after = content(step.before), content(step.after)
    return {path: len(data) for path, data in after.items() if before.get(path) != data}


def test_cut_writes(steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]) -> None:
    rng = random.Random(0)
    faults = Faults("writes cut short")
    folder = tmp_path / "folder"
    for step in spread(steps, times(40), rng):
        copy(step.before, folder)
        size = rng.choice(sorted(written(step).values()))
        limit = rng.choice([0, 1, size - 1, size // 2, rng.randrange(size), max(0, size - 130)])
        ended = forked(folder, step.action, Limits(file=limit))
        where = f"{step.name}, {limit} bytes a file"
        if wrong := cut_short(step, folder, ended.code, ended.fault, ended.reason):
            faults.add(wrong, f"{where}: {ended.reason}")
            continue
        again = forked(folder, step.action)
        if again.code != 0:
            faults.add("does not run again", f"{where}: {again.reason}")
        elif others := differing(folder, step.after):
            faults.add("other files than an unbroken run", f"{where}: {', '.join(others[:3])}")
        else:
            faults.hold("one line, the same at last" if ended.code else "large enough")
    faults.tell()


def cut_short(
    step: Step, folder: Path, code: int | None, fault: str | None, reason: str
) -> str | None:
    """What is wrong with the end of a stage on a full disk."""
    before, after, now = content(step.before), content(step.after), content(folder)
    if fault:
        return fault
    if code == 0:
        return None if now == after else "half a file, and exit code 0"
    if not any(words.lower() in reason.lower() for words in REASONS):
        return "the line does not give the system's reason"
    if "/" not in reason:
        return "the line names no file"
    half = [path for path, data in now.items() if data not in (before.get(path), after.get(path))]
    # A stage may remove its old outputs first; there are none here.
    return "a file that is damaged" if half or before.keys() - now.keys() else None
