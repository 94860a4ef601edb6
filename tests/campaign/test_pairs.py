"""Two runs of a stage at the same time, in one folder or in two clones.

In one folder, both end in the same bytes, or one says that another run is at it.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign.forked import Child, Ended, Limits
from campaign.workspace import Faults, Step, copy, differing, spread

pytestmark = pytest.mark.slow


def at_once(step: Step, folders: list[Path], delay: float) -> list[Ended]:
    """Run the stage in each of the folders, the second one later."""
    children = []
    for folder in folders:
        children.append(Child(folder, step.action, Limits(seconds=120)))
        time.sleep(delay)
    return [child.wait() for child in children]


def test_one_stage_twice(
    steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]
) -> None:
    rng = random.Random(0)
    faults = Faults("pairs in one folder")
    for step in spread(steps, times(14), rng):
        folder, delay = copy(step.before, tmp_path / "folder"), rng.uniform(0, step.seconds)
        ends = at_once(step, [folder, folder], delay)
        where = f"{step.name}, {delay:.2f} s apart"
        refused = [end for end in ends if end.code != 0]
        if others := differing(folder, step.after):
            faults.add("other files than one run", f"{where}: {', '.join(others[:3])}")
        elif len(refused) > 1:
            faults.add("none of the two ends well", f"{where}: {refused[0].reason}")
        elif refused and (refused[0].fault or "another run is at it" not in refused[0].reason):
            faults.add("the loser has another reason", f"{where}: {refused[0].reason}")
        else:
            faults.hold("one told of the other" if refused else "both end the same")
    faults.tell()


def test_two_clones(steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]) -> None:
    rng = random.Random(1)
    faults = Faults("pairs of clones")
    for step in spread(steps, times(6), rng):
        folders = [copy(step.before, tmp_path / name) for name in ("one", "two")]
        ends = at_once(step, folders, rng.uniform(0, step.seconds / 2))
        wrong = [end for end in ends if end.code != 0]
        if wrong:
            faults.add("a clone fails", f"{step.name}: {wrong[0].reason}")
        elif others := [x for folder in folders for x in differing(folder, step.after)]:
            faults.add("other files than one run", f"{step.name}: {', '.join(others[:3])}")
        else:
            faults.hold("both end the same")
    faults.tell()
