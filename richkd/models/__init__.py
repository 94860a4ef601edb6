"""Image classifiers by name, with the parameter names of the published CIFAR checkpoints.

To add a network, write `richkd/models/<family>.py` with
- a `torch.nn.Module` whose forward takes images (N, 3, H, W) and returns `ModelOutput`, with the
  attributes `feature_dim`, the length of the features, and `stages`, the names of the submodules
  whose outputs are the feature maps;
- `build(name, num_classes)`, which returns that module;
and add the names that `build` takes to `FAMILIES` below. The tests then cover the new names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from richkd.base.errors import InputError
from richkd.models.maps import stage_names, with_maps
from richkd.models.output import ModelOutput

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "REFERENCE_NAMES",
    "ModelOutput",
    "check_name",
    "check_stages",
    "create",
    "names",
    "stage_names",
    "with_maps",
]

# By the file that builds the networks. The names stand here because they must be known without
# importing torch: every stage checks the params, and some stages need no torch.
FAMILIES = {
    "resnet": (
        "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 "
        "resnet8x2 resnet8x4 resnet32x4"
    ).split(),
    "resnet_imagenet": ["resnet18", "resnet50"],
    "wrn": ["wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"],
    "vgg": ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"],
    "mobilenetv1": ["mobilenetv1"],
    "mobilenetv2": ["mobilenetv2"],
    "shufflenet": ["shufflenetv1", "shufflenetv2"],
}

# What the published checkpoints call a network, where their name is not ours.
REFERENCE_NAMES = {
    "mobilenetv2": "MobileNetV2",
    "shufflenetv1": "ShuffleV1",
    "shufflenetv2": "ShuffleV2",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
}


def names() -> list[str]:
    """The architectures that `create` knows, without torchvision's."""
    return [name for family in FAMILIES.values() for name in family]


def check_name(name: str) -> None:
    """Raises InputError where `name` is no architecture; the message says what is allowed.

    Only a name of the form `torchvision/<name>` imports torch, which takes seconds.
    """
    if name.startswith("torchvision/"):
        import_module("richkd.models.torchvision").check(name)
    elif name not in names():
        known = ", ".join(names())
        raise InputError(f"model {name!r} is unknown: must be one of {known}, torchvision/<name>")


def create(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised classifier.

    Called with float images (N, 3, H, W) it returns `ModelOutput(logits, features)`: logits
    (N, num_classes) and the pooled vector before the classifier (N, model.feature_dim).
    `torchvision/<name>` is torchvision's network of that name. Raises InputError for an unknown
    name, and for a network of torchvision that does not end in one linear layer.
    """
    check_name(name)
    family = next((family for family, known in FAMILIES.items() if name in known), "torchvision")
    network: nn.Module = import_module(f"richkd.models.{family}").build(name, num_classes)
    return network


def check_stages(student: str, teacher: str) -> None:
    """Raises InputError where two architectures cannot be compared map by map, stage by stage.

    Imports torch, and makes both networks without memory for their weights.
    """
    import torch

    with torch.device("meta"):
        own, theirs = (len(stage_names(create(name, 2))) for name in (student, teacher))
    if own != theirs:
        raise InputError(
            f"feature maps are compared stage by stage: {student} has {own} stages, "
            f"{teacher} {theirs}"
        )
