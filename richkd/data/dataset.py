"""A prepared data set: splits of images and labels, and what there is to know about them."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from richkd.base.errors import InputError, one_line
from richkd.base.files import read_json, replacing, write_json

CORRUPTED, SHIFTED = Path("data/corrupted"), Path("data/shifted")


class Split(NamedTuple):
    """Images uint8 (N, H, W, 3) and labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Manifest(NamedTuple):
    """Images in files that stay where they are: `paths`, N of them, below `root`.

    Labels int64 (N,); sizes int32 (N, 2), width and height as they are looked at, and bytes int64
    (N,), by which other files make another data set; plain bool (N,), whether it is an upright JPEG
    in RGB or grey, which a GPU can decode.
    """

    root: str
    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    bytes: np.ndarray
    plain: np.ndarray

    def take(self, ids: np.ndarray) -> "Manifest":
        arrays = (x[ids] for x in (self.labels, self.sizes, self.bytes, self.plain))
        return Manifest(self.root, [self.paths[i] for i in ids], *arrays)


@dataclass(frozen=True, kw_only=True)
class Info:
    """The classes' names in order, and the training pixels' mean and sd a channel, in [0, 1].

    Of images in files also the classes' folders, in the same order, and the files left out since
    they cannot be read.
    """

    name: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    folders: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def whole_imagenet(self) -> bool:
        """Whether figures published for ImageNet's 1,000 classes are to be held against it."""
        return self.name == "imagenet" and len(self.classes) == 1000


def picture(path: Path | str) -> Image.Image:
    """An image file as it is looked at: upright, in RGB; InputError names one that is broken."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey, which PIL would cut off at white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # what PIL raises depends on where it is broken
        raise InputError(f"{path} cannot be decoded: {one_line(error)}") from None


def save_split(path: Path | str, split: Split | Manifest) -> None:
    tensors = split._asdict()
    if isinstance(split, Manifest):  # names may hold any byte but 0
        text = os.fsencode("\0".join([tensors.pop("root"), *tensors.pop("paths")]))
        tensors["files"] = np.frombuffer(text, np.uint8)
    with replacing(path) as part:
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, part)


def load_split(path: Path | str) -> Split | Manifest:
    """InputError where the file is not whole."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not whole: {error}") from None
    if "files" not in tensors:
        return Split(**tensors)
    root, *paths = os.fsdecode(tensors.pop("files").tobytes()).split("\0")
    return Manifest(root, paths, **tensors)


def save_info(path: Path | str, info: Info) -> None:
    write_json(path, asdict(info))


def load_info(path: Path | str) -> Info:
    return Info(**read_json(path))
