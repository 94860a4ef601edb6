"""Stages on sources that the other tests do not run end to end, in a small working folder."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import yaml

import stages.cache
import stages.clip
import stages.corrupt
import stages.prepare
import stages.teacher
from richkd import cifar_c, models, params
from richkd.dataset import Info, Split, save_info, save_split
from richkd.errors import InputError
from richkd.files import read_json, sha256
from richkd.training import TrainingData, train_seeds
from serving import Answer

ROOT = Path(__file__).parents[1]
CLASSES = ["apple", "maple tree", "sea", "wolf"]
NUMBERS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


@pytest.fixture
def folder(here, monkeypatch):
    """Prepared images as `prepare` leaves them, of four classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "downloads"))
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("validation", 8), ("test", 20), ("captioned", 0)):
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        save_split(f"data/{name}.safetensors", Split(images, np.arange(count) % 4))
    save_info("data/info.json", Info(name="cifar100", classes=CLASSES, **NUMBERS))
    return here


def write(**sections):
    """params.yaml: the preset cifar100 with other sections."""
    preset = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(preset | sections))


# --- prepare ------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 200, (5, 6, 7, 3)).astype(np.uint8)
    mean, std = stages.prepare.statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))


# --- teacher ------------------------------------------------------------------------------------


def checkpoint(path, min_accuracy=0.0):
    return {
        "source": "checkpoint", "arch": "resnet8", "path": str(path), "sha256": sha256(path),
        "min_accuracy": min_accuracy, **NUMBERS,
    }  # fmt: skip


def test_a_ready_made_teacher_is_saved_tested_and_refused_below_the_bound(folder, capsys):
    torch.save(models.create("resnet8", 4).state_dict(), "x.pth")
    write(teacher=checkpoint("x.pth"))
    stages.teacher.main()
    tested = read_json("metrics/teacher.json")["test_accuracy"]
    assert f"is right on {100 * tested:.2f} % of the test images" in capsys.readouterr().out
    assert 0 <= read_json("metrics/train/teacher.json")["validation_accuracy"]["mean"] <= 1
    curves = pd.read_csv("metrics/curves/teacher.csv")
    assert list(curves) == ["epoch", "validation_accuracy", "seed"] and curves.empty
    record = read_json("models/teacher/seed0.json")
    assert record["mean"] == NUMBERS["mean"] and record["data"] == {"x.pth": sha256("x.pth")}
    assert "min_accuracy" not in record["params"]["teacher"]
    write(teacher=checkpoint("x.pth", 1.0))
    with pytest.raises(InputError, match=rf"test images is {tested:.4f}, teacher.min_accuracy is 1.0"):
        stages.teacher.main()


def test_a_trained_teacher_below_the_bound_is_refused(folder):
    digits = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())
    write(teacher=digits["teacher"] | {"epochs": 1, "min_accuracy": 1.0})
    with pytest.raises(InputError, match="teacher.min_accuracy is 1.0"):
        stages.teacher.main()


# --- clip ---------------------------------------------------------------------------------------


def test_a_clip_from_a_file_becomes_a_classifier_and_a_table(folder):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    Path("small.json").write_text(json.dumps(config))
    open_clip.add_model_config(Path("small.json").absolute())
    torch.save(open_clip.create_model("small").state_dict(), "small.pt")
    clip = {
        "source": "checkpoint", "model": "small", "tag": None, "path": "small.pt",
        "sha256": sha256("small.pt"), "prompts": "imagenet80", "logit_scale": 50.0,
    }  # fmt: skip
    write(clip=clip)
    stages.clip.main()
    record = read_json("models/clip/seed0.json")
    assert record["scale"] == 50 and len(record["prompts"]) == 80 and record["classes"] == CLASSES
    assert record["data"]["small.pt"] == clip["sha256"] and "seed" not in record
    stages.cache.main("clip")
    assert np.load("cache/clip/logits.npy").shape == (1, 8, 4)
    assert len(read_json("metrics/cache/clip.json")["single_prompt_accuracy"]) == 81
    write(clip=clip | {"sha256": "0" * 64})
    with pytest.raises(InputError, match="clip.path: small.pt has sha256:.*, must have sha256:0000"):
        stages.clip.main()


# --- corrupt ------------------------------------------------------------------------------------

SETS = {"names": ["frost", "fog"], "severities": [3, 1]}


@pytest.fixture
def published(folder):
    """A folder as CIFAR-100-C's tar unpacks to: the pixels of a set are its severity."""
    path = folder / "CIFAR-100-C"
    path.mkdir()
    severities = np.repeat(np.arange(1, 6), 20)
    np.save(path / "labels.npy", np.tile(np.arange(20) % 4, 5))
    for name in SETS["names"]:
        images = np.broadcast_to(severities[:, None, None, None], (100, 32, 32, 3))
        np.save(path / f"{name}.npy", images.astype(np.uint8))
    return path


def test_published_sets_are_taken_from_a_folder(published):
    write(corruptions={"source": "path", "path": str(published), **SETS})
    stages.corrupt.main()
    for name in SETS["names"]:
        images = np.load(f"data/corrupted/{name}.npy")
        assert images.shape == (40, 32, 32, 3) and images[:, 5, 5, 1].tolist() == [3] * 20 + [1] * 20


def test_a_tar_that_is_not_the_published_one_is_refused(published, server):
    with tarfile.open("other.tar", "w") as tar:
        tar.add(published, "CIFAR-100-C")
    write(corruptions={"source": "path", "path": "other.tar", **SETS})
    with pytest.raises(InputError, match="corruptions.path: other.tar has md5:.*, must have md5:11f0"):
        stages.corrupt.main()
    url = server.url("/CIFAR-100-C.tar", Answer(body=Path("other.tar").read_bytes()))
    write(corruptions={"source": "download", "urls": [url], **SETS})
    with pytest.raises(InputError, match="CIFAR-100-C.tar could not be downloaded: .*has md5:"):
        stages.corrupt.main()
    assert not Path("data/corrupted").exists()


def test_published_sets_are_downloaded(published, server, monkeypatch):
    with tarfile.open("sets.tar", "w") as tar:
        tar.add(published, "CIFAR-100-C")
    body = Path("sets.tar").read_bytes()
    official = cifar_c.Official("CIFAR-100-C.tar", f"md5:{hashlib.md5(body).hexdigest()}")
    monkeypatch.setitem(cifar_c.OFFICIAL, "cifar100", official)
    urls = [server.url("/gone", Answer(status=404)), server.url("/sets.tar", Answer(body=body))]
    write(corruptions={"source": "download", "urls": urls, **SETS})
    stages.corrupt.main()
    assert np.load("data/corrupted/fog.npy")[:, 0, 0, 0].tolist() == [3] * 20 + [1] * 20


def test_a_full_device_says_what_to_lower(folder):
    student = params.Training(
        arch="resnet8", epochs=1, batch_size=8, lr=0.1, schedule="onecycle", milestones=(),
        momentum=0.9, weight_decay=0.0,
    )  # fmt: skip
    runtime = params.Runtime(
        device="cpu", precision="fp32", deterministic=False, step="auto", seeds_at_once=1
    )
    data = TrainingData(params.Views(pad=1, flip=False), runtime)

    def full(model):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    said = "out of memory: lower batch_size, runtime.seeds_at_once or crd.num_negatives.* 9 GiB"
    with pytest.raises(InputError, match=said):
        train_seeds("ce", data, student, [0], full, {}, [])
