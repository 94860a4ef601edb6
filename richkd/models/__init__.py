"""Image classifiers by name, with the parameter names of the published CIFAR checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from richkd.models.output import ModelOutput

if TYPE_CHECKING:
    from torch import nn

__all__ = ["REFERENCE_NAMES", "ModelOutput", "create", "names"]

# By the module that builds them. Names must be known without importing torch: every stage checks
# the params, and some need no torch.
FAMILIES = {
    "resnet": (
        "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 "
        "resnet8x2 resnet8x4 resnet32x4"
    ).split(),
    "resnet_imagenet": ["resnet18", "resnet50"],
    "wrn": ["wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"],
    "vgg": ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"],
    "mobilenetv1": ["mobilenetv1"],
    "mobilenet": ["mobilenetv2"],
    "shufflenet": ["shufflenetv1", "shufflenetv2"],
}

# What the published checkpoints call a model, where that is not our name.
REFERENCE_NAMES = {
    "mobilenetv2": "MobileNetV2",
    "shufflenetv1": "ShuffleV1",
    "shufflenetv2": "ShuffleV2",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
}


def names() -> list[str]:
    """Every architecture that `create` knows, but for torchvision's."""
    return [name for family in FAMILIES.values() for name in family]


def create(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised classifier.

    Called with float images (N, 3, H, W) it returns `ModelOutput(logits, features)`: logits
    (N, num_classes) and the pooled vector before the classifier (N, model.feature_dim).
    `torchvision/<name>` is torchvision's model of that name. Raises ValueError for an unknown name.
    """
    if name.startswith("torchvision/"):
        return import_module("richkd.models.torchvision").build(name, num_classes)
    for family, members in FAMILIES.items():
        if name in members:
            return import_module(f"richkd.models.{family}").build(name, num_classes)
    known = ", ".join(names())
    raise ValueError(f"model {name!r} is unknown: choose one of {known}, torchvision/<name>")
