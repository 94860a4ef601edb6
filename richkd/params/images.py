"""The sections of params.yaml about images: data set, views, corruptions."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from richkd.params.kinds import (
    Count,
    ListOf,
    Positive,
    Seed,
    Sha256,
    Text,
    Urls,
    Whole,
    section,
)

Benchmark = Literal[
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
]
Extra = Literal["speckle_noise", "gaussian_blur", "spatter", "saturate"]
Corruption = Literal[Benchmark, Extra]
# The corruptions of the benchmark, and the four more that the benchmark keeps for validation.
BENCHMARK: tuple[str, ...] = get_args(Benchmark)
EXTRA: tuple[str, ...] = get_args(Extra)


@section
class Digits:
    """The embedded data set, composed by `prepare`."""

    name: Literal["digits"]
    classes: Literal["all"] | ListOf[str]  # all, or the class names to keep
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
    sha256: Sha256 | None  # of the archive, where it is not the official one
    train_per_class: Literal["all"] | Count  # labelled training images a class
    validation: Whole  # images taken from the training images; 0 trains on all of them
    captioned_images: Whole  # training images with captions, where CLIP is trained
    seed: Seed  # of the split


@section
class Folders:
    """Images in folders, `train/<class>/` and `val/<class>/`; the files stay where they are.

    `val` is the test set, as in ImageNet's papers.
    """

    root: Text  # the folder that holds train/ and val/; records repeat the path as written here
    classes: Literal["all"] | ListOf[str]  # all, or the folders to keep
    expect_train: Count | None  # how many images train/ must hold; null: any number
    expect_val: Count | None  # the same for val/
    unreadable: Whole  # how many files may be damaged; they are named and left out
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
    """A data set of your own."""

    name: Literal["folder"]
    names: Text | None  # JSON file, {folder: readable name}; null: the folders' names


@section
class PaddedCrops:
    """Every crop of the image padded by `pad` pixels, and with `flip` its mirror image."""

    augmentation: Literal["padded_crop"]
    pad: Whole
    flip: bool


@section
class ResizedCrops:
    """Training: a crop of random size and shape, resized. Inference: the centre of the image."""

    augmentation: Literal["resized_crop"]
    size: Annotated[int, Field(ge=16)]  # side of what the networks see, in pixels
    resize: Count  # length of the shorter side before the centre is cut out, in pixels
    scale: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # of the area
    ratio: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # width to height
    flip: bool


Views = PaddedCrops | ResizedCrops


@section
class CorruptionSets:
    names: ListOf[Corruption]
    severities: ListOf[Annotated[int, Field(ge=1, le=5)]]


@section
class GeneratedCorruptions(CorruptionSets):
    source: Literal["generate"]
    seed: Seed
    # Of generated textures, or of the benchmark's photographs: `download`, or the folder of a copy.
    frost: Text = "generated"

    @property
    def photographs_needed(self) -> bool:
        return "frost" in self.names and self.frost != "generated"


@section
class DownloadedCorruptions(CorruptionSets):
    """The published sets: CIFAR-100-C, CIFAR-10-C."""

    source: Literal["download"]
    urls: Urls


@section
class LocalCorruptions(CorruptionSets):
    """The published sets in a local tar, or in its unpacked folder."""

    source: Literal["path"]
    path: Text


FROST_SIDE = 315  # pixels, the shortest side of the photographs
Corruptions = GeneratedCorruptions | DownloadedCorruptions | LocalCorruptions
CORRUPTION_SOURCES = {  # by the name of the data set
    "digits": ["generate"],
    "cifar10": ["generate", "download", "path"],
    "cifar100": ["generate", "download", "path"],
    "imagenet": ["generate", "path"],
    "folder": ["generate"],
}
