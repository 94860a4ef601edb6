"""The sections of params.yaml about images: data set, views, corruptions."""

from typing import Annotated, Literal

from pydantic import Field

from richkd.params.kinds import (
    Count,
    Positive,
    Seed,
    Sha256,
    Text,
    Urls,
    Whole,
    list_of,
    section,
)

# What the corruption benchmarks have, and the four that they keep for validation; `richkd.data.corruptions`
# makes them.
BENCHMARK = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


Corruption = Literal[*BENCHMARK, *EXTRA]


@section
class Digits:
    """The embedded data set, composed by `prepare`."""

    name: Literal["digits"]
    classes: Literal["all"] | list_of(str)  # all, or the class names to keep
    train_per_class: Count  # labelled training images a class
    validation_images: Count
    test_images: Count
    captioned_images: Count  # what CLIP is trained on, composed of the training scans
    seed: Seed


@section
class Cifar:
    """CIFAR-100 or CIFAR-10 from the official archive."""

    name: Literal["cifar100", "cifar10"]
    urls: Urls  # tried in turn, unless `archive` is given
    archive: Text | None  # a local copy
    sha256: Sha256 | None  # of an archive that is not the official one
    train_per_class: Literal["all"] | Count  # labelled training images a class
    validation: Whole  # images taken from the training images; 0 trains on all of them
    captioned_images: Whole  # training images with captions, where CLIP is trained
    seed: Seed  # of the split


@section
class Folders:
    """Images in folders, `train/<class>/` and `val/<class>/`; the files stay where they are.

    `val` is the test set, as in ImageNet's papers.
    """

    root: Text  # holds train/ and val/; recorded as it is written here
    classes: Literal["all"] | list_of(str)  # all, or the folders to keep
    expect_train: Count | None  # images that must be there; null: as many as there are
    expect_val: Count | None
    unreadable: Whole  # files that may be cut off or no images; they are named and left out
    train_per_class: Literal["all"] | Count  # labelled training images a class
    validation: Whole  # images taken from the training images; 0 trains on all of them
    captioned_images: Whole  # training images with captions, where CLIP is trained
    seed: Seed  # of the split


@section
class ImageNet(Folders):
    """ILSVRC 2012; `val` in folders, or flat with the devkit beside it."""

    name: Literal["imagenet"]


@section
class Folder(Folders):
    """Any other such data set."""

    name: Literal["folder"]
    names: Text | None  # a JSON of readable names by folder; null: the folders' own


@section
class PaddedCrops:
    """Every crop of the image padded by `pad` pixels, and its mirror: as many as are finite."""

    augmentation: Literal["padded_crop"]
    pad: Whole
    flip: bool


@section
class ResizedCrops:
    """A crop of random size and shape, resized; without it, the centre of the resized image."""

    augmentation: Literal["resized_crop"]
    size: Annotated[int, Field(ge=16)]  # side of what the networks see, in pixels
    resize: Count  # the shorter side, before the centre is cut out
    scale: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # of the area
    ratio: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # width to height
    flip: bool


Views = PaddedCrops | ResizedCrops


@section
class CorruptionSets:
    names: list_of(Corruption)
    severities: list_of(Annotated[int, Field(ge=1, le=5)])


@section
class GeneratedCorruptions(CorruptionSets):
    source: Literal["generate"]
    seed: Seed


@section
class DownloadedCorruptions(CorruptionSets):
    """The published sets: CIFAR-100-C, CIFAR-10-C."""

    source: Literal["download"]
    urls: Urls


@section
class LocalCorruptions(CorruptionSets):
    """The published sets, as their tar or its folder."""

    source: Literal["path"]
    path: Text


Corruptions = GeneratedCorruptions | DownloadedCorruptions | LocalCorruptions
CORRUPTION_SOURCES = {
    "digits": ["generate"],
    "cifar10": ["generate", "download", "path"],
    "cifar100": ["generate", "download", "path"],
    "imagenet": ["generate", "path"],
    "folder": ["generate"],
}
