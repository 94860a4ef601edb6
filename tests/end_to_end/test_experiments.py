"""`dvc exp run -S`: what a changed parameter runs, and what it leaves as it was."""

import json
import re
import time
from pathlib import Path

import pytest
from pipeline import command, hashes, stages_run

from richkd.evaluate.summary import HEADLINE

pytestmark = pytest.mark.slow

DKD = "{teacher: fused, dkd: {weight: 1.0, alpha: 1.0, beta: 8.0, temperature: 4.0, warm_up: 2}}"


def of_variant(name: str) -> set[str]:
    return {f"{stage}@{name}" for stage in ("distill", "evaluate", "calibrate")}


FOLLOW_FROM_ALPHA = {
    "code", "fusion", "evaluate_fused", "calibrate_reference@fused", "report", *of_variant("LF"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "ran", "students"),
    [
        ("distill.variants.LF.crd.weight=0.2", {"code", "report", *of_variant("LF")}, "ce kd LF"),
        (f"+distill.variants.dkd={DKD}", {"code", "report", *of_variant("dkd")}, "ce kd LF dkd"),
        ("fusion.alpha=0.5", FOLLOW_FROM_ALPHA, "ce kd LF"),
        ("~distill.variants.kd", {"code", "report"}, "ce LF"),
    ],
)
def test_an_experiment_runs_what_follows_from_its_change(
    copy: Path, change: str, ran: set[str], students: str
) -> None:
    before = hashes(copy)
    assert stages_run(command(copy, "dvc", "exp", "run", "-S", change)) == ran
    after = hashes(copy)
    trained = {path for path in after if after[path] != before.get(path)}
    variants = {stage.removeprefix("distill@") for stage in ran if stage.startswith("distill@")}
    assert trained == {f"models/{x}/seed{seed}.safetensors" for x in variants for seed in (0, 1)}
    summary = json.loads((copy / "metrics/summary.json").read_text())
    assert set(summary) == {"teacher", "clip", "fused", *students.split()}
    if change.startswith("fusion"):
        check_headline(copy)


def check_headline(folder: Path) -> None:
    """`dvc metrics diff` has a line a figure of the models that changed, and no detail."""
    head, _, *lines = command(folder, "dvc", "metrics", "diff", "--md").splitlines()
    assert "metrics/summary.json" in lines[0] and "Path" in head
    metrics = [line.split("|")[2].strip() for line in lines if "|" in line]
    shown = {f"{x}.{y}" for x in ("fused", "LF") for y in HEADLINE}
    assert set(metrics) <= shown and len(metrics) == len(set(metrics)) > 5
    assert max(len(line) for line in lines) <= 120
    columns = command(folder, "dvc", "exp", "show", "--csv").splitlines()[0].split(",")
    assert {x for x in columns if x.startswith("LF.")} == {f"LF.{metric}" for metric in HEADLINE}


def test_a_sweep_runs_what_follows_from_alpha(copy: Path) -> None:
    """Two queued experiments side by side; then one of them is put in place."""
    before = hashes(copy)
    command(copy, "dvc", "exp", "run", "--queue", "-S", "fusion.alpha=range(0.1,0.3,0.1)")
    command(copy, "dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 300
    while (status := command(copy, "dvc", "queue", "status")).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(5)
    jobs = re.findall(r"^(\w+) +(\S+).*Success", status, re.MULTILINE)
    for job, _ in jobs:
        log = command(copy, "dvc", "queue", "logs", job)
        assert stages_run(log) == FOLLOW_FROM_ALPHA
        kept = set(re.findall(r"Stage '(.+?)' didn't change", log))
        assert {"alone", "cache@teacher", "cache@clip", "distill@kd"} <= kept
    command(copy, "dvc", "exp", "apply", jobs[0][1])
    after = hashes(copy)
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {f"models/LF/seed{seed}.safetensors" for seed in (0, 1)}
