"""The sections of params.yaml about images: data set, views, corruptions."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from richkd.params.kinds import (
    Count,
    ImageSide,
    ListOf,
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

Composed = Annotated[int, Field(ge=1, le=10**6)]  # images, which `prepare` composes one by one
Part = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]


@section
class Digits:
    """The embedded data set, composed by `prepare`."""

    name: Literal["digits"]
    classes: Literal["all"] | ListOf[str]  # all, or the class names to keep
    train_per_class: Composed  # labelled training images a class
    validation_images: Composed
    test_images: Composed
    captioned_images: Composed  # what CLIP is trained on, composed of the training scans
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
    # Images taken from the training images, or their share; 0 trains on all of them.
    validation: Whole | Part
    captioned_images: Literal["all"] | Whole  # training images with captions, to train CLIP
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
    pad: Annotated[int, Field(ge=0, le=32)]
    flip: bool


@section
class ResizedCrops:
    """Training: a crop of random size and shape, resized. Inference: the centre of the image."""

    augmentation: Literal["resized_crop"]
    size: ImageSide  # of what the networks see
    resize: ImageSide  # of the shorter side before the centre is cut out
    scale: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # of the area
    ratio: Annotated[tuple[Ratio, ...], Field(min_length=2, max_length=2)]  # width to height
    flip: bool


Views = PaddedCrops | ResizedCrops
Dataset = Digits | Cifar | ImageNet | Folder

_UNITS = "one|two|three|four|five|six|seven|eight|nine"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
NUMBER_NAMES = (  # the classes of `digits`
    f"zero|{_UNITS}|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen|"
    f"({_TENS})(-({_UNITS}))?"
)
PER_CLASS = {"cifar10": 5000, "cifar100": 500}  # training images, as published
CLASSES = {"digits": 100, "cifar10": 10, "cifar100": 100, "imagenet": 1000}
SIDES = {"digits": 16, "cifar10": 32, "cifar100": 32}  # in pixels


def num_classes(dataset: Dataset) -> int | None:
    """The number of classes; None where the images' folders alone tell it."""
    kept = "all" if isinstance(dataset, Cifar) else dataset.classes
    return CLASSES.get(dataset.name) if kept == "all" else len(kept)


def side(dataset: Dataset, views: Views) -> int:
    """The side, in pixels, of the square images that a student sees."""
    return views.size if isinstance(views, ResizedCrops) else SIDES[dataset.name]


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
