"""A prepared data set on disk: splits of images and labels, and the facts about the whole set."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat
from safetensors.numpy import save_file

from richkd.base.checkout import locate
from richkd.base.errors import InputError
from richkd.base.files import fingerprint, replacing, write_json
from richkd.base.records import check_array, read_array, read_json, read_safetensors

CORRUPTED, SHIFTED = Path("data/corrupted"), Path("data/shifted")

# The tensors in a split's file: dtype, and the shape for one image.
Kinds = dict[str, tuple[str, tuple[int | None, ...]]]
SPLIT: Kinds = {"images": ("uint8", (None, None, 3)), "labels": ("int64", ())}
MANIFEST: Kinds = {
    "files": ("uint8", ()),
    "labels": ("int64", ()),
    "sizes": ("int32", (2,)),
    "bytes": ("int64", ()),
    "plain": ("bool", ()),
}


class Split(NamedTuple):
    """Images uint8 (N, H, W, 3) and labels int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


class Manifest(NamedTuple):
    """N images in files that stay where they are: `paths`, relative to the folder `root`.

    labels int64 (N,). sizes int32 (N, 2) are width and height of the upright image, and bytes int64
    (N,) the sizes of the files; both change when somebody changes the files. plain bool (N,) says
    whether a file is an upright JPEG in RGB or grey, which a GPU can decode.
    """

    root: str
    paths: list[str]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int64]
    plain: npt.NDArray[np.bool_]

    def take(self, ids: npt.NDArray[np.int64]) -> "Manifest":
        """The manifest of the images `ids` alone, in their order."""
        paths = [self.paths[i] for i in ids]
        sizes, lengths = self.sizes[ids], self.bytes[ids]
        return Manifest(self.root, paths, self.labels[ids], sizes, lengths, self.plain[ids])


@dataclass(frozen=True, kw_only=True)
class Info:
    """The classes' names in order, and the training pixels' mean and sd a channel, in [0, 1].

    For images in files also the classes' folders, in the same order, and the files that were left
    out because they cannot be read. For CIFAR-100 the superclass of each class, by name.
    """

    name: str
    classes: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
    std: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
    folders: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    superclasses: dict[str, str] = field(default_factory=dict)

    @property
    def whole_imagenet(self) -> bool:
        """Whether results can be compared with those published for ImageNet's 1,000 classes."""
        return self.name == "imagenet" and len(self.classes) == 1000


def read_corrupted(path: Path, test: Split | Manifest, severities: int) -> npt.NDArray[np.uint8]:
    """A corruption's images where they are arrays: uint8 (severities · N, H, W, 3), on the disk.

    InputError unless they are as many and as large as the test images; those of test images in
    files are squares, the centres of the files.
    """
    side = test.images.shape[1:3] if isinstance(test, Split) else (None, None)
    images = read_array(path, "uint8", (severities * len(test.labels), *side, 3), "r")
    if isinstance(test, Manifest) and images.shape[1] != images.shape[2]:
        raise InputError(f"{path} holds images of {images.shape[1:3]}: must be squares")
    return images


def save_split(path: Path | str, split: Split | Manifest) -> None:
    """Write a split as a safetensors file."""
    tensors: dict[str, Any] = split._asdict()
    if isinstance(split, Manifest):  # file names can have any byte except 0
        text = os.fsencode("\0".join([tensors.pop("root"), *tensors.pop("paths")]))
        tensors["files"] = np.frombuffer(text, np.uint8)
    with replacing(path) as part:
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, part)


def load_split(path: Path | str, classes: int | None = None) -> Split | Manifest:
    """Read what `save_split` wrote. InputError if the file is damaged.

    With the number of `classes` a label of none of them is refused, too.
    """
    tensors = read_safetensors(path)
    kinds = MANIFEST if "files" in tensors else SPLIT
    if others := sorted(kinds.keys() ^ tensors.keys()):
        raise InputError(f"{path} is not a split: {others[0]} is missing, or must not be there")
    check_array(f"{path}: labels", tensors["labels"], "int64", (None,))
    labels = tensors["labels"]
    for name, (dtype, shape) in kinds.items():
        length = None if name == "files" else len(labels)
        check_array(f"{path}: {name}", tensors[name], dtype, (length, *shape))
    if len(labels) and labels.min() < 0:
        raise InputError(f"{path} has the label {labels.min()}: must be 0 or more")
    if classes is not None and len(labels) and labels.max() >= classes:
        raise InputError(f"{path} has the label {labels.max()}: must be below {classes}")
    if "files" not in tensors:
        return Split(**tensors)
    root, *paths = os.fsdecode(tensors.pop("files").tobytes()).split("\0")
    if len(paths) != len(labels):
        raise InputError(f"{path} has {len(paths)} file names for {len(labels)} images")
    return Manifest(str(locate(root, *paths[:1])), paths, **tensors)


def save_info(path: Path | str, info: Info) -> None:
    """Write the facts about a data set as JSON, superclasses only where there are some."""
    facts = asdict(info)
    if not info.superclasses:
        del facts["superclasses"]
    # A class name that lacks a letter is still a name, and goes on into the models' records.
    write_json(path, {**facts, "checksum": fingerprint(facts)})


def load_info(path: Path | str) -> Info:
    """Read what `save_info` wrote. InputError if the file is damaged."""
    info: Info = read_json(path, Info)
    facts = read_json(path, dict[str, Any])
    if facts.pop("checksum", None) != fingerprint(facts):
        raise InputError(f"{path} is damaged or of another version of this code: run `dvc repro`")
    return info
