"""A prepared data set: splits of images and labels, and what there is to know about them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from richkd.errors import InputError
from richkd.files import read_json, replacing, write_json


class Split(NamedTuple):
    """Images uint8 (N, H, W, 3) and labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Info:
    """The classes' names in order, and the training pixels' mean and sd a channel, in [0, 1]."""

    name: str
    classes: list[str]
    mean: list[float]
    std: list[float]


def save_split(path: Path | str, split: Split) -> None:
    with replacing(path) as part:
        save_file({name: np.ascontiguousarray(x) for name, x in split._asdict().items()}, part)


def load_split(path: Path | str) -> Split:
    """InputError where the file is not whole."""
    try:
        return Split(**load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path} is not whole: {error}") from None


def save_info(path: Path | str, info: Info) -> None:
    write_json(path, asdict(info))


def load_info(path: Path | str) -> Info:
    return Info(**read_json(path))
