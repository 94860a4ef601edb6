"""The pipeline of the smoke preset, run once, with a copy of the folder before each stage."""

import os
import random
import shutil
from collections import Counter
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from campaign.forked import REPOSITORY, Action, Change, Limits, forked, read_changes, stage, watched

CRD = {
    "weight": 0.1, "dim": 16, "num_negatives": 16, "negatives": "shared", "temperature": 0.07,
    "momentum": 0.5,
}  # fmt: skip
VARIANTS = {
    "kd": {"teacher": "teacher", "kd": {"weight": 3.0, "temperature": 3.0}},
    "LF": {"teacher": "fused", "kd": {"weight": 3.0, "temperature": 3.0}, "crd": CRD},
    "C": {"teacher": "clip", "pkt": {"weight": 1.0}, "sp": {"weight": 1.0}},
}
MODELS = ("teacher", "clip", "fused", "ce", *VARIANTS)
STAGES = [
    *("code", "prepare", "teacher", "clip", "cache teacher", "cache clip", "fusion", "alone"),
    *(f"distill {name}" for name in VARIANTS),
    *("corrupt", "shift"),
    *(f"evaluate {name}" for name in MODELS if name != "fused"),
    "evaluate_fused",
    *(f"calibrate {name}" for name in MODELS),
    "report",
]

EXAMPLES = 10  # of each kind of fault are printed


class Step(NamedTuple):
    """A stage of the pipeline, and what its unbroken run did."""

    name: str  # with its word: `distill kd`
    before: Path  # the folder before it
    after: Path  # and behind it
    seconds: float
    work: int
    changes: list[Change]
    action: Action

    @property
    def interval(self) -> int:
        """The most calls of networks that one kill may cost: those between two saves.

        Where more calls follow the last save, it is these. One more finds out the shapes at each
        start. A stage that saves nothing below .resume starts anew.
        """
        at = [change.work for change in self.changes if change.saves]
        return 1 + max(after - before for before, after in pairwise([0, *at, self.work]))


def every_save(action: Action) -> Action:
    """The action with a table that is saved after every batch, not only every five seconds."""

    def act() -> None:
        from richkd.teachers import caching

        assert caching.SAVE_EVERY
        caching.SAVE_EVERY = 0.0
        action()

    return act


def unbroken(name: str, before: Path, after: Path, action: Action) -> Step:
    """Run a stage to its end, in the folder `after`, a copy of `before`."""
    copy(before, after)
    log = after.with_suffix(".log")
    ended = forked(after, watched(action, log), Limits(seconds=300))
    assert ended.code == 0, f"{name}: {ended.err}"
    return Step(name, before, after, ended.seconds, ended.work, read_changes(log), action)


def smoke() -> dict[str, Any]:
    """The smoke preset with a variant under each teacher, and a further test set."""
    params: dict[str, Any] = yaml.safe_load((REPOSITORY / "presets/smoke.yaml").read_text())
    params["distill"]["variants"] = deepcopy(VARIANTS)
    params["shifted"] = {"noise": ["more/images.npy", "more/labels.npy"]}
    return params


def dump_params(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def link_code(folder: Path) -> None:
    """The stage `code` reads the code in the working folder."""
    for name in ("richkd", "stages"):
        (folder / name).symlink_to(REPOSITORY / name)


def run_pipeline(base: Path) -> dict[str, Step]:
    """Run all stages, one after another; returns them by name."""
    steps: dict[str, Step] = {}
    before = base / "00"
    before.mkdir(parents=True)
    link_code(before)
    dump_params(before, smoke())
    for number, name in enumerate(STAGES, 1):
        after = base / f"{number:02}"
        steps[name] = unbroken(name, before, after, every_save(stage(*name.split())))
        # As if DVC had recorded the outputs: the next stage finds nothing to go on from.
        shutil.rmtree(after / ".resume", ignore_errors=True)
        before = after
        if name == "prepare":
            before = copy(after, base / "with further images")
            add_test_set(before)
    return steps


def add_test_set(folder: Path) -> None:
    """Twelve images of noise, where params.yaml names a further test set."""
    from richkd.data.dataset import load_split

    shape = load_split(folder / "data/test.safetensors").images.shape[1:]  # type: ignore[union-attr]
    noise = np.random.default_rng(0).integers(0, 256, (12, *shape), np.uint8)
    (folder / "more").mkdir()
    np.save(folder / "more/images.npy", noise)
    np.save(folder / "more/labels.npy", np.arange(12) % 6)


def copy(folder: Path, to: Path) -> Path:
    """A copy of the folder, in place of an older one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to, symlinks=True))


def content(folder: Path) -> dict[str, bytes]:
    """The content of every file by its path, without what lies below .resume or behind links."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".resume"]
        for name in files:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b""
    return found


def differing(folder: Path, other: Path) -> list[str]:
    """The paths of files that are in one of the folders alone, or have another content there."""
    one, two = content(folder), content(other)
    return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def spread(steps: dict[str, Step], count: int, rng: random.Random) -> list[Step]:
    """`count` steps in random order, each about as often as any other."""
    names = list(steps)
    chosen = [names[i % len(names)] for i in range(max(count, len(names)))]
    rng.shuffle(chosen)
    return [steps[name] for name in chosen[:count]]


class Faults:
    """What did not hold, by kind; the first examples of each kind are printed as they come."""

    def __init__(self, title: str) -> None:
        self.title, self.tried = title, 0
        self.kinds: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    def hold(self, kind: str) -> None:
        """Count an outcome that is right."""
        self.tried += 1
        self.held[kind] += 1

    def add(self, kind: str, example: str) -> None:
        """Count one that is not."""
        self.tried += 1
        self.kinds[kind] += 1
        if self.kinds[kind] <= EXAMPLES:
            print(f"{self.title}: {kind}: {example}", flush=True)

    @property
    def counts(self) -> str:
        """One line."""
        told = ", ".join(f"{count} {kind}" for kind, count in (self.held + self.kinds).items())
        return f"{self.title}: {self.tried} tried, {self.kinds.total()} faults: {told}"

    def tell(self) -> None:
        """Print the line of counts; fail where something did not hold."""
        print(self.counts)
        if self.kinds:
            pytest.fail(self.counts, pytrace=False)
