"""Queued experiments on images, names, weights and test sets that lie at relative paths."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
import trees
import yaml
from pipeline import REPOSITORY, clone, command, commit

from richkd import models
from richkd.base.files import sha256

pytestmark = pytest.mark.slow


def test_two_queued_experiments_find_what_the_checkout_has(tmp_path: Path) -> None:
    """The images are in a folder that git ignores, the others lie beside the checkout."""
    folder, weights = clone(tmp_path / "clone"), tmp_path / "teacher.pt"
    classes = ["dog", "red_fox", "wolf"]
    trees.imagenet(folder / "images", 4, 2, classes, oddities=False)
    trees.shifted(tmp_path / "r", {"dog": 0, "wolf": 2})
    (folder / "images/names.json").write_text(json.dumps({name: f"a {name}" for name in classes}))
    torch.save(models.create("resnet8", len(classes)).state_dict(), weights)
    params = yaml.safe_load((REPOSITORY / "presets/folder-cpu.yaml").read_text())
    params["dataset"]["names"] = "images/names.json"
    params["teacher"] = {
        "source": "checkpoint", "arch": "resnet8", "path": "../teacher.pt",
        "sha256": sha256(weights), "mean": [0.5] * 3, "std": [0.25] * 3, "min_accuracy": 0.0,
    }  # fmt: skip
    params["shifted"] = {"r": "../r", "gone": "../gone"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(folder, "images")
    command(folder, "dvc", "exp", "run", "--queue", "-S", "dataset.seed=1,2", "teacher", "shift")
    command(folder, "dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 600
    while (status := command(folder, "dvc", "queue", "status")).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(1)
    jobs = re.findall(r"^(\w+) +\S+.*Success", status, re.MULTILINE)
    assert len(jobs) == 2
    logs = [command(folder, "dvc", "queue", "logs", job) for job in jobs]
    for log in logs:
        assert "data/train.safetensors: 9 images of 3 classes" in log
        assert "models/teacher: resnet8 from ../teacher.pt" in log
    # The second job may take the further test sets from the first one, out of DVC's run cache.
    both = rf"{folder}/\.dvc/tmp/exps/gone or {tmp_path}/gone"
    assert re.search(f"gone is skipped: nothing is at {both}", "".join(logs))
    assert "r: 6 images of 2 classes" in "".join(logs)
