"""The preset of ImageNet, made so small that two cores run it in a minute or two."""

from pathlib import Path
from typing import Any

import torch
import yaml
from trees import WNIDS

from richkd import models
from richkd.base.files import sha256

PRESET = Path(__file__).parents[1] / "presets/imagenet-r34-r18.yaml"


def params(root: Path, teacher: Path, **sections: object) -> dict[str, Any]:
    """A whole params.yaml, for the images at `root` and a file with the teacher's weights."""
    p = yaml.safe_load(PRESET.read_text())
    p["dataset"] |= {
        "root": str(root), "classes": WNIDS, "expect_train": None, "expect_val": None,
        "unreadable": 1, "validation": 39, "captioned_images": 200,
    }  # fmt: skip
    p["views"] |= {"size": 48, "resize": 56, "scale": [0.5, 1.0]}
    p["runtime"]["precision"] = "fp32"
    p["teacher"] = {
        "source": "checkpoint", "arch": "timm/test_resnet", "path": str(teacher),
        "sha256": sha256(teacher), "min_accuracy": 0.0,
    }  # fmt: skip
    p["clip"] = yaml.safe_load(PRESET.with_name("smoke.yaml").read_text())["clip"]
    prompts = ["a photo of a {}", "a picture of a {}"]
    p["clip"]["training"] |= {"captions": prompts, "steps": 40}
    p["clip"]["prompts"] = list(prompts)  # of one list YAML would make an alias
    p["cache"] |= {"top_k": 5, "batch_size": 4}  # many batches: time to be killed in
    # With a small rate rounding errors stay small, so that one process and two can be compared.
    p["student"] |= {
        "arch": "resnet8", "epochs": 3, "batch_size": 40, "lr": 0.0005, "milestones": [2],
    }  # fmt: skip
    variants = p["distill"]["variants"]
    p["distill"]["variants"] = {"kd": variants["kd"], "LF": variants["LF"]}
    variants["LF"]["crd"] |= {"weight": 0.1, "dim": 16, "num_negatives": 64}
    p["corruptions"] = {
        "source": "path", "path": str(root.parent / "imagenet-c"),
        "names": ["gaussian_noise", "fog"], "severities": [3],
    }  # fmt: skip
    p["shifted"] = {
        "imagenet_v2": str(root.parent / "v2"), "imagenet_r": str(root.parent / "r"),
        "imagenet_a": str(root.parent / "a"),
    }  # fmt: skip
    p["evaluate"]["batch_size"] = 50
    return p | sections


def random_teacher(path: Path) -> Path:
    """Write the weights of an untrained network of timm."""
    torch.manual_seed(0)
    torch.save(models.create("timm/test_resnet", len(WNIDS)).state_dict(), path)
    return path
