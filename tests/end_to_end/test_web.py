"""CIFAR-100 from the web to a student: mirrors, a published teacher, no validation images."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pipeline import ENVIRONMENT, clone, command, edit, stage
from serving import Answer, Server

from richkd import models

pytestmark = pytest.mark.slow


def published_teacher() -> bytes:
    """A tar as that of the published teachers, with an untrained one."""
    teachers, weights = io.BytesIO(), io.BytesIO()
    torch.save({"model": models.create("resnet8", 100).state_dict()}, weights)
    with tarfile.open(fileobj=teachers, mode="w") as tar:
        member = tarfile.TarInfo("cifar_teachers/resnet8_vanilla/ckpt_epoch_240.pth")
        member.size = weights.tell()
        weights.seek(0)
        tar.addfile(member, weights)
    return teachers.getvalue()


def write_params(folder: Path, dataset: dict[str, Any], teacher_url: str) -> None:
    """The preset cifar100, made small, with these sources."""
    digits = yaml.safe_load((folder / "presets/smoke.yaml").read_text())
    params = yaml.safe_load((folder / "presets/cifar100.yaml").read_text())
    params["dataset"] |= dataset | {"train_per_class": 1, "captioned_images": 200}
    params["views"]["pad"] = 1
    params["teacher"] |= {"arch": "resnet8", "min_accuracy": 0.0, "urls": [teacher_url]}
    params["clip"] = digits["clip"]
    params["clip"]["training"]["steps"] = 20
    params["student"] |= {"arch": "resnet8", "epochs": 1, "milestones": []}
    params["distill"] = {"seeds": [0], "variants": {"LF": digits["distill"]["variants"]["LF"]}}
    params["corruptions"] = {"source": "generate", "names": ["fog"], "severities": [1], "seed": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def test_cifar100_from_the_web(
    tmp_path: Path, official: dict[str, Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(ENVIRONMENT, "NO_PROXY", "127.0.0.1")
    archive = official["cifar100"].read_bytes()
    urls = [
        server.url("/gone.tar.gz", Answer(status=404)),
        server.url(
            "/c.tar.gz", Answer(body=archive, sends=len(archive) // 2), Answer(body=archive)
        ),
    ]

    folder = clone(tmp_path / "clone")
    dataset = {"urls": urls, "sha256": hashlib.sha256(archive).hexdigest()}
    write_params(folder, dataset, server.url("/teachers.tar", Answer(body=published_teacher())))
    command(folder, "dvc", "repro", "fusion", "distill@LF")
    asked = [request.path for request in server.requests]
    assert asked == ["/gone.tar.gz", "/c.tar.gz", "/c.tar.gz", "/teachers.tar"]
    assert server.requests[2].range == f"bytes={len(archive) // 2}-"
    assert json.loads((folder / "metrics/fusion.json").read_text()) == {}
    trained = json.loads((folder / "metrics/train/LF.json").read_text())
    assert list(trained) == ["train_accuracy", "best_test_top1", "best_test_epoch"]
    tested = json.loads((folder / "metrics/teacher.json").read_text())["test_accuracy"]

    edit(folder, "teacher.min_accuracy", 0.5)
    result = stage(folder, "stages.teacher")
    assert result.returncode == 1
    says = f"the teacher's accuracy on the test images is {tested:.4f}, teacher.min_accuracy is 0.5"
    assert result.stderr.splitlines()[-1].startswith(f"error: {says}")
    edit(folder, "dataset.archive", str(official["cifar10"]))
    result = stage(folder, "stages.prepare")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: dataset.archive, checked against dataset.sha256: ")
