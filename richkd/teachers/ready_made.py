"""Teachers that are not trained here: from published checkpoints, local files, torchvision."""

from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from richkd import models, weights
from richkd.base import download
from richkd.base.checkout import locate
from richkd.base.errors import InputError, one_line
from richkd.base.files import sha256
from richkd.data.views import Center, Preprocessing
from richkd.params import (
    CheckpointTeacher,
    MdistillerTeacher,
    ReadyMadeTeacher,
    TorchvisionTeacher,
)

# The normalisation of CIFAR-100 in mdistiller and in the papers before it.
MDISTILLER = Preprocessing((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


class ReadyMade(NamedTuple):
    """A classifier, the preprocessing of its input, and where its weights come from.

    preprocessing.center is None where nothing says how image files are cut for the classifier. data
    maps the source of the weights to their hash or version. img_size is that of `models.create`.
    """

    arch: str
    model: nn.Module
    preprocessing: Preprocessing
    data: dict[str, str]
    img_size: int | None = None


def obtain(p: ReadyMadeTeacher, num_classes: int) -> ReadyMade:
    """The teacher that the params name. InputError if its weights cannot be had or do not fit."""
    if isinstance(p, TorchvisionTeacher):
        return _torchvision(p, num_classes)
    if isinstance(p, MdistillerTeacher):
        model = models.create(p.arch, num_classes)
        return ReadyMade(p.arch, model, MDISTILLER, _load_mdistiller(p, model))
    model = models.create(p.arch, num_classes, p.img_size)
    path = locate(p.path)
    download.verify(path, f"sha256:{p.sha256}", "teacher.path")
    weights.load_into(model, path)
    return ReadyMade(p.arch, model, _preprocessing(p), {p.path: p.sha256}, p.img_size)


def _preprocessing(p: CheckpointTeacher) -> Preprocessing:
    """The preprocessing that params.yaml names, or else timm's own."""
    if p.mean and p.std:
        return Preprocessing(p.mean, p.std)
    timm = models.published_input(p.arch, p.img_size)
    center = Center(timm.resize, timm.size, timm.interpolation, timm.resize_mode)
    return Preprocessing(timm.mean, timm.std, center)


def _load_mdistiller(p: MdistillerTeacher, model: nn.Module) -> dict[str, str]:
    """Load the weights from `cifar_teachers.tar` into the model; returns `ReadyMade.data`."""
    name = models.REFERENCE_NAMES.get(p.arch, p.arch)
    member = f"cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth"
    archive = download.fetch(
        p.urls,
        "cifar_teachers.tar",
        p.sha256 and f"sha256:{p.sha256}",
        "unpack it where there is a network and set teacher.source: checkpoint, teacher.path",
    )
    try:
        with download.members(archive) as found:
            content = BytesIO(found[member]()) if member in found else None
    except InputError:
        if p.sha256 is None:
            archive.unlink()  # it may be a wrong file, so the next try downloads it again
        raise
    if content is None:
        raise InputError(f"{archive} has no {member}: there is no such teacher")
    content.name = f"{archive}: {member}"
    weights.load_into(model, content)
    return {"cifar_teachers.tar": sha256(archive)}


def _torchvision(p: TorchvisionTeacher, num_classes: int) -> ReadyMade:
    name = f"torchvision/{p.arch}"
    chosen = models.find_weights(p.arch, p.weights, num_classes)
    model = models.create(name, num_classes)
    try:
        state: dict[str, Any] = chosen.get_state_dict(progress=True, check_hash=True)
    # No network, another hash, or half a file.
    except (OSError, RuntimeError, HTTPException) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"{chosen.url} could not be had ({one_line(error, 100)}): fetch it where there is a "
            f"network and put it into {folder}"
        ) from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"torchvision's weights {p.weights} do not fit its {p.arch}: {one_line(error, 150)}"
        ) from None
    transforms = chosen.transforms()
    center = Center(
        transforms.resize_size[0], transforms.crop_size[0], transforms.interpolation.value
    )
    data = {chosen.url: str(chosen)}
    return ReadyMade(name, model, Preprocessing(transforms.mean, transforms.std, center), data)
