"""What DVC costs on `digits`: `dvc repro` with nothing to do, and one step of a sweep over alpha.

Runs in a temporary clone of the working tree with its outputs. The clone has no run cache, so that
an alpha that was tried before runs again. Run it: `python -m bench.overhead`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench.common import ROOT, report, spread
from richkd import params

OUTPUTS = ("data", "cache", "models", "predictions", "report", ".dvc/cache/files")
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
START, CHECKS = "dvc: start", "dvc: the rest"


def main(*, repeats: int = 3, alpha: float = 0.5) -> None:
    """Exits with a line for another data set, and for outputs that are missing or out of date."""
    p = params.load("dataset", "fusion.alpha", path=ROOT / "params.yaml")
    if p.dataset.name != "digits":
        sys.exit(f"params.yaml has {p.dataset.name}: this measures digits")
    if p.fusion.alpha == alpha:
        sys.exit(f"fusion.alpha is {alpha} already: nothing would change")
    with tempfile.TemporaryDirectory() as folder:
        clone(Path(folder))
        stale = re.findall(r"Running stage '(.+?)'", command(folder, "dvc", "repro", "--dry"))
        if stale:
            sys.exit(f"{', '.join(stale)} not up to date: run `dvc repro` first")
        nothing = [by_stage(folder, "dvc", "repro") for _ in range(repeats)]
        change = by_stage(folder, "dvc", "exp", "run", "-S", f"fusion.alpha={alpha}")

    rows = {}
    for part in (START, CHECKS):
        rows[f"no-op {part}"] = spread("seconds", [run[part] for run in nothing])
    rows["no-op in all"] = spread("seconds", [sum(run.values()) for run in nothing])
    for part, seconds in {**change, "in all": sum(change.values())}.items():
        rows[f"alpha {part}"] = {"seconds": seconds}
    change_of = f"fusion.alpha {p.fusion.alpha} to {alpha}, dvc exp run"
    report("overhead", rows, data_set="digits", change=change_of, repeats_of_no_op=repeats)


def clone(to: Path) -> None:
    """The working tree, committed, and its outputs; exits with a line where there are none."""
    missing = [name for name in OUTPUTS if not (ROOT / name).exists()]
    if missing:
        sys.exit(f"no {', '.join(missing)}: run `dvc repro` first")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    for name in OUTPUTS:
        shutil.copytree(ROOT / name, to / name)
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
        command(to, *git, *words)


def command(folder: Path | str, *words: str) -> str:
    """What the command prints; exits with it where the command fails."""
    return "".join(line for _, line in timed(folder, *words))


def timed(folder: Path | str, *words: str) -> list[tuple[float, str]]:
    """Each line that the command prints, with the seconds since its start; the last is its end."""
    start = time.perf_counter()
    with subprocess.Popen(
        words,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = [(time.perf_counter() - start, line) for line in process.stdout or ()]
    lines.append((time.perf_counter() - start, ""))
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{''.join(line for _, line in lines)}")
    return lines


def by_stage(folder: Path | str, *words: str) -> dict[str, float]:
    """Seconds of each stage that ran, its lock entry included, and of all else that DVC does."""
    seconds: dict[str, float] = defaultdict(float)
    running, last = START, 0.0
    for now, line in timed(folder, *words):
        seconds[running] += now - last
        last = now
        if begun := re.search(r"Running stage '(.+?)'", line):
            running = begun[1]
        elif re.search(r"Stage '.+?' didn't change|Updating lock file", line):
            running = CHECKS
    return seconds


if __name__ == "__main__":
    main()
