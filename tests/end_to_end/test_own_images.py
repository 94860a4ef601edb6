"""Queued experiments on images, weights and test sets that lie at relative paths."""

import re
import time
from pathlib import Path

import pytest
import small_imagenet
import trees
import yaml
from pipeline import clone, command, commit

pytestmark = pytest.mark.slow


def test_two_queued_experiments_find_what_the_checkout_has(tmp_path: Path) -> None:
    """The images are in a folder that git ignores, the others lie beside the checkout."""
    folder = clone(tmp_path / "clone")
    trees.imagenet(folder / "images", 4, 2)
    trees.shifted(tmp_path / "r", {wnid: i for i, wnid in enumerate(trees.WNIDS[:2])})
    small_imagenet.random_teacher(tmp_path / "teacher.pt")
    params = small_imagenet.params(folder / "images", tmp_path / "teacher.pt")
    params["dataset"] |= {"root": "images", "validation": 0.25, "captioned_images": "all"}
    params["teacher"]["path"] = "../teacher.pt"
    params["shifted"] = {"r": "../r", "gone": "../gone"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    commit(folder, "images")
    targets = ["teacher", "shift"]
    command(folder, "dvc", "exp", "run", "--queue", "-S", "dataset.seed=1,2", *targets)
    command(folder, "dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 300
    while (status := command(folder, "dvc", "queue", "status")).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(1)
    jobs = re.findall(r"^(\w+) +\S+.*Success", status, re.MULTILINE)
    assert len(jobs) == 2
    for job in jobs:
        log = command(folder, "dvc", "queue", "logs", job)
        assert "data/train.safetensors: 60 images of 20 classes" in log
        assert "models/teacher: torchvision/resnet18 from ../teacher.pt" in log
        assert "r: 6 images of 2 classes" in log
        copy = rf"{folder}/\.dvc/tmp/exps"
        assert re.search(rf"gone is skipped: nothing is at {copy}/gone or {tmp_path}/gone", log)
