"""The preset of ImageNet, small enough for two cores in a minute or two."""

from pathlib import Path

import torch
import yaml
from trees import WNIDS

from richkd import models
from richkd.base.files import sha256

PRESET = Path(__file__).parents[1] / "presets/imagenet-r34-r18.yaml"


def params(root: Path, teacher: Path, **sections: object) -> dict:
    """The whole params.yaml, for the tree at `root` and the teacher's weights in a file."""
    p = yaml.safe_load(PRESET.read_text())
    p["dataset"] |= {
        "root": str(root), "classes": WNIDS, "expect_train": None, "expect_val": None,
        "unreadable": 1, "validation": 39, "captioned_images": 200,
    }  # fmt: skip
    p["views"] |= {"size": 48, "resize": 56, "scale": [0.5, 1.0]}
    p["runtime"]["precision"] = "fp32"
    p["teacher"] = {
        "source": "checkpoint", "arch": "torchvision/resnet18", "path": str(teacher),
        "sha256": sha256(teacher), "mean": [0.5] * 3, "std": [0.25] * 3, "min_accuracy": 0.0,
    }  # fmt: skip
    p["clip"] = yaml.safe_load(PRESET.with_name("smoke.yaml").read_text())["clip"]
    prompts = ["a photo of a {}", "a picture of a {}"]
    p["clip"]["training"] |= {"captions": prompts, "steps": 40}
    p["clip"] |= {"prompts": prompts}
    p["cache"] |= {"top_k": 5, "batch_size": 4}  # time to be killed in
    # So small a rate that rounding does not grow: then metrics of one process and of two can be compared.
    p["student"] |= {
        "arch": "resnet8",
        "epochs": 3,
        "batch_size": 40,
        "lr": 0.0005,
        "milestones": [2],
    }
    p["distill"]["feature_weight"] = 0.1
    p["crd"] |= {"dim": 16, "num_negatives": 64}
    p["baseline"]["variants"], p["distill"]["variants"] = ["kd"], ["LF"]
    p["corruptions"] |= {"names": ["gaussian_noise", "fog"], "severities": [3]}
    p["corruptions"] |= {"path": str(root.parent / "imagenet-c")}
    p["shifted"] = {
        "imagenet_v2": str(root.parent / "v2"), "imagenet_r": str(root.parent / "r"),
        "imagenet_a": str(root.parent / "a"),
    }  # fmt: skip
    p["evaluate"] = {"models": ["teacher", "clip", "kd", "LF"], "batch_size": 50}
    return p | sections


def random_teacher(path: Path) -> Path:
    """The state_dict of a freshly initialised ResNet-18."""
    torch.manual_seed(0)
    torch.save(models.create("torchvision/resnet18", len(WNIDS)).state_dict(), path)
    return path
