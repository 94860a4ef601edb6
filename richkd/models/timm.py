"""timm's classifiers, untrained, under `timm/<name>` and with timm's parameter names.

A name may end in a tag, `timm/resnet18.a1_in1k`. The tag is timm's name for some weights, and says
how images are prepared for these weights; the network is the same for all tags.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any, NamedTuple

import timm
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from richkd.base.errors import InputError, one_line
from richkd.models.output import ModelOutput
from richkd.models.torchvision import STAGES, Head

RESIZE_MODES = {"center": "shortest", "squash": "squash"}  # timm's names: ours


class Half(ModelOutput):
    """What one of two heads returns. timm adds both and divides by 2; features are averaged too."""

    def __add__(self, other: tuple[Tensor, ...]) -> Half:  # type: ignore[override]
        return Half(*(one + two for one, two in zip(self, other, strict=True)))

    def __truediv__(self, number: int) -> ModelOutput:
        return ModelOutput(*(part / number for part in self))


class HalfHead(nn.Linear):
    """One of the two heads of a network that was distilled with a token of its own."""

    def forward(self, features: Tensor) -> Half:  # type: ignore[override]
        return Half(super().forward(features), features)


class PublishedInput(NamedTuple):
    """What a network's published weights expect of an image.

    The image is resized to `resize` pixels, the shorter side or with `squash` both, then the middle
    of `size` x `size` pixels is taken. mean and std, a number a channel, are for pixels in [0, 1].
    """

    size: int
    resize: int
    resize_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check(name: str) -> None:
    """Raises InputError where timm has no network `timm/<name>`, or no such tag of it."""
    short = name.removeprefix("timm/")
    arch, _, tag = short.partition(".")
    if not timm.is_model(arch):
        close = ", ".join(get_close_matches(arch, timm.list_models(), n=5, cutoff=0))
        raise InputError(f"model {name!r} is unknown: timm has {close} and others")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{arch}.*", pretrained=True)]
    if tag and tag not in tags:
        raise InputError(f"model {name!r} is unknown: the tags of {arch} are {', '.join(tags)}")


def published_input(name: str, img_size: int | None = None) -> PublishedInput:
    """timm's own configuration of `timm/<name>`, a name that passed `check`.

    img_size is the side in pixels for which the network was made, if that is not timm's own side.
    Raises InputError where timm's images are not square, or have borders.
    """
    published = get_pretrained_cfg(name.removeprefix("timm/"))
    given = {"img_size": img_size} if img_size else {}
    config: dict[str, Any] = resolve_data_config(given, published.to_dict() if published else {})
    _, height, width = config["input_size"]
    if height != width:
        raise InputError(
            f"model {name!r} has images of {height} x {width} pixels in timm: they must be square"
        )
    if (mode := config["crop_mode"]) not in RESIZE_MODES:
        raise InputError(
            f"model {name!r} has images of crop mode {mode!r} in timm: must be center or squash"
        )
    return PublishedInput(
        height,
        math.floor(height / config["crop_pct"]),
        RESIZE_MODES[mode],
        config["interpolation"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )


def build(name: str, num_classes: int, img_size: int | None = None) -> nn.Module:
    """`timm/<name>`, a name that passed `check`; `img_size` is the side of its images if given.

    `feature_dim` is the width of the last linear layer's input. The features are what timm's
    `forward_head(…, pre_logits=True)` returns; for a network with two heads the mean of both
    inputs.
    Where a dropout stands before that layer, features in training are those after the dropout.
    Only ResNets name their `stages`. Raises InputError for a network whose logits do not come from
    one linear layer, or from the mean of two, and for one that cannot be made for `img_size`.
    """
    given: dict[str, Any] = {"img_size": img_size} if img_size else {}
    try:
        network: Any = timm.create_model(
            name.removeprefix("timm/"), num_classes=num_classes, **given
        )
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        if not img_size:
            raise
        raise InputError(
            f"model {name!r} cannot be made for img_size {img_size}: {one_line(error, 80)}"
        ) from None
    head = network.get_classifier() if hasattr(network, "get_classifier") else None
    last = head if isinstance(head, tuple) else (head,)
    # timm's own Linear differs from torch's in TorchScript alone.
    if len(last) > 2 or any(type(part) not in (nn.Linear, timm.layers.Linear) for part in last):
        raise InputError(
            f"model {name!r} is not supported: its logits must come from one linear layer, or from "
            "the mean of two"
        )
    # In place, because a wrapper would put a prefix before every parameter's name. timm's
    # classifiers return what their last layer returns.
    for part in last:
        part.__class__ = Head if len(last) == 1 else HalfHead
    network.arch = name
    network.feature_dim = last[0].in_features
    if isinstance(network, timm.models.ResNet):
        setattr(network, "stages", STAGES)  # noqa: B010, mypy takes every attribute for a module
    return network
