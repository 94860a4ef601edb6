"""Image classifiers by name, with the parameter names of the published CIFAR checkpoints.

To add a network, write `richkd/models/<family>.py` with
- a `torch.nn.Module` whose forward takes images (N, 3, H, W) and returns `ModelOutput`, with the
  attributes `feature_dim`, the length of the features, and `stages`, the names of the submodules
  whose outputs are the feature maps;
- `build(name, num_classes)`, which returns that module;
and add the names that `build` takes to `FAMILIES` below. The tests then cover the new names.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from richkd.base.errors import InputError, one_line
from richkd.models.maps import stage_names, with_maps
from richkd.models.output import ModelOutput

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum

    from richkd.models.timm import PublishedInput

__all__ = [
    "REFERENCE_NAMES",
    "ModelOutput",
    "check_name",
    "check_side",
    "check_stages",
    "create",
    "find_weights",
    "names",
    "of_library",
    "published_input",
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

# Libraries whose networks are named `<library>/<name>`; each has a file of its own here.
LIBRARIES = ("torchvision", "timm")

# What the published checkpoints call a network, where their name is not ours.
REFERENCE_NAMES = {
    "mobilenetv2": "MobileNetV2",
    "shufflenetv1": "ShuffleV1",
    "shufflenetv2": "ShuffleV2",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
}


def names() -> list[str]:
    """The architectures that `create` knows, without those of `LIBRARIES`."""
    return [name for family in FAMILIES.values() for name in family]


def of_library(name: str) -> bool:
    """Whether the name has the form `torchvision/<name>` or `timm/<name>`."""
    return name.startswith(tuple(f"{library}/" for library in LIBRARIES))


def check_name(name: str) -> None:
    """Raises InputError where `name` is no architecture; the message says what is allowed.

    Only a name for which `of_library` is true imports torch, which takes seconds.
    """
    if of_library(name):
        import_module(f"richkd.models.{_family(name)}").check(name)
    elif name not in names():
        known = ", ".join([*names(), *(f"{library}/<name>" for library in LIBRARIES)])
        raise InputError(f"model {name!r} is unknown: must be one of {known}")


def create(name: str, num_classes: int, img_size: int | None = None) -> nn.Module:
    """A freshly initialised classifier.

    Called with float images (N, 3, H, W) it returns `ModelOutput(logits, features)`: logits
    (N, num_classes) and the pooled vector before the classifier (N, model.feature_dim).
    `torchvision/<name>` and `timm/<name>` are these libraries' networks of that name. `img_size` is
    the side in pixels of the images that a network of timm is made for; None: timm's own side.
    Raises InputError for an unknown name, for a network of a library that does not end in a linear
    layer, and for an `img_size` that the network cannot be made for.
    """
    check_name(name)
    family = _family(name)
    build = import_module(f"richkd.models.{family}").build
    if img_size and family != "timm":
        raise InputError(f"model {name!r} has no img_size: only some networks of timm have one")
    network: nn.Module = (
        build(name, num_classes, img_size) if img_size else build(name, num_classes)
    )
    return network


def _family(name: str) -> str:
    """The file of this folder that builds the network of a known name."""
    own = (family for family, known in FAMILIES.items() if name in known)
    return next(own, name.partition("/")[0])


def check_stages(student: str, teacher: str) -> None:
    """Raises InputError where two architectures cannot be compared map by map, stage by stage.

    Imports torch, and makes both networks without memory for their weights.
    """
    own, theirs = (len(stage_names(_without_memory(name))) for name in (student, teacher))
    if own != theirs:
        raise InputError(
            f"feature maps are compared stage by stage: {student} has {own} stages, "
            f"{teacher} {theirs}"
        )


@cache
def check_side(name: str, side: int, img_size: int | None = None) -> None:
    """Raises InputError for a network that `create` refuses, or that does not take such images.

    The images are square, `side` pixels wide. Imports torch, and makes the network without memory
    for its weights.
    """
    import torch

    network = _without_memory(name, img_size)
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            output = network(torch.zeros(2, 3, side, side, device=device))
    except Exception as error:  # the kind of error depends on the network
        reason = one_line(error, 80)
        raise InputError(
            f"model {name!r} does not take images of {side} x {side} pixels ({reason})"
        ) from None
    if not isinstance(output, ModelOutput) or output.features.dim() != 2:
        raise InputError(
            f"model {name!r} is not supported: its logits must follow from one vector an image"
        )


def published_input(name: str, img_size: int | None = None) -> PublishedInput:
    """How timm prepares images for `timm/<name>`. InputError for a name that is unknown.

    `img_size` is that of `create`. Imports torch.
    """
    check_name(name)
    published: PublishedInput = import_module("richkd.models.timm").published_input(name, img_size)
    return published


def find_weights(name: str, weights: str, num_classes: int | None) -> WeightsEnum:
    """The weights that torchvision has for its classifier `name`; their file is not fetched yet.

    Raises InputError where there are none of that name, where they do not know `num_classes`
    classes (None: not known yet), and where `torchvision/<name>` does not take the images that they
    were trained on. Imports torch.
    """
    chosen: WeightsEnum = import_module("richkd.models.torchvision").named_weights(name, weights)
    classes = len(chosen.meta["categories"] or ())
    if not classes or num_classes not in (None, classes):
        raise InputError(
            f"teacher.weights is {weights!r}: {name} with them knows {classes or 'no'} classes"
            + (f", the data set has {num_classes}" if num_classes else "")
        )
    try:
        check_side(f"torchvision/{name}", chosen.transforms().crop_size[0])
    except InputError as error:
        raise InputError(f"teacher.weights is {weights!r}: {error}") from None
    return chosen


def _without_memory(name: str, img_size: int | None = None) -> nn.Module:
    """The network of that name, for two classes, without memory for its weights if possible."""
    import torch

    try:
        with torch.device("meta"):
            return create(name, 2, img_size)
    except NotImplementedError:  # torchvision's RegNets read numbers back while they are built
        return create(name, 2, img_size)
