"""The corrupted test images: corrupted here, or read as published."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image
from tqdm import tqdm

from richkd import params
from richkd.base import download
from richkd.base.checkout import locate
from richkd.base.errors import InputError
from richkd.data.cifar_c import OFFICIAL, read_cifar_c
from richkd.data.corruptions import corrupt
from richkd.data.dataset import Info, Manifest, Split
from richkd.data.imagenet_c import read_imagenet_c
from richkd.data.pictures import picture

Array = npt.NDArray[np.uint8]
# The benchmark's photographs of ice. It never draws a sixth one that lies beside them.
PHOTOGRAPHS_URL = (
    "https://raw.githubusercontent.com/hendrycks/robustness/master/ImageNet-C/create_c"
)
PHOTOGRAPHS = {
    "frost1.png": "sha256:ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "sha256:fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "sha256:2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "sha256:3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "sha256:5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}


def generated_sets(
    p: params.GeneratedCorruptions, views: params.Views, test: Split | Manifest
) -> Iterator[tuple[str, Array]]:
    """Each corruption's name and images, corrupted here."""
    photographs = frost_photographs(p.frost) if p.photographs_needed else None
    constants = "cifar"
    if isinstance(test, Manifest):
        assert isinstance(views, params.ResizedCrops)  # `richkd.params` allows no others for files
        constants = "imagenet"
        size = len(p.severities) * len(test.labels) * views.size**2 * 3
        check_room(size, len(p.names) * size)
        test = centers(test, views)
    for name in p.names:
        blocks = [
            corrupt(test.images, name, x, p.seed, constants, photographs) for x in p.severities
        ]
        yield name, np.concatenate(blocks)


def frost_photographs(source: str) -> list[Array]:
    """The benchmark's photographs: `source` is `download`, or the folder that holds them."""
    photographs = []
    for name, checksum in PHOTOGRAPHS.items():
        if source == "download":
            instead = "set corruptions.frost to the folder of a copy, or to generated"
            path = download.fetch([f"{PHOTOGRAPHS_URL}/{name}"], f"frost/{name}", checksum, instead)
        else:
            path = locate(source, name) / name
            download.verify(path, checksum, "corruptions.frost")
        photographs.append(np.asarray(picture(path)))
    return photographs


def check_room(memory: int, disk: int) -> None:
    """InputError if one corruption does not fit into memory, or all of them not on the disk.

    `memory` and `disk` are their sizes in bytes.
    """
    for needed, free, where in (
        (3 * memory, psutil.virtual_memory().available, "memory"),
        (2 * disk, shutil.disk_usage(".").free, "disk, with DVC's copy"),
    ):
        if needed > free:
            raise InputError(
                f"corrupted test images need {needed / 1e9:,.1f} GB of {where}, "
                f"{free / 1e9:,.1f} are free: name fewer corruptions.names or severities, "
                "or set corruptions.source: path"
            )


def centers(test: Manifest, views: params.ResizedCrops) -> Split:
    """The centres of the test images as arrays; ImageNet-C was made from such centres."""
    images = []
    for path in tqdm(test.paths, "centers", unit="image"):
        image = picture(Path(test.root, path))
        # Rounded as torchvision does, so that corrupted and clean images show the same pixels.
        width, height = (views.resize * side // min(image.size) for side in image.size)
        left, top = round((width - views.size) / 2), round((height - views.size) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image.crop((left, top, left + views.size, top + views.size))))
    return Split(np.stack(images), test.labels)


def published_sets(
    p: params.DownloadedCorruptions | params.LocalCorruptions, test: Split | Manifest, info: Info
) -> Iterator[tuple[str, Array | Manifest]]:
    """Each corruption's name and images, as published."""
    if isinstance(test, Manifest):
        assert isinstance(p, params.LocalCorruptions)  # `richkd.params` allows no download
        return read_imagenet_c(p.path, p.names, p.severities, test, info.folders)
    official = OFFICIAL[info.name]
    if p.source == "download":
        instead = "set corruptions.source: path, and corruptions.path to a local copy"
        source = download.fetch(p.urls, official.file, official.md5, instead)
    else:
        source = locate(p.path)
        if source.is_file():
            download.verify(source, official.md5, "corruptions.path")
    return read_cifar_c(source, p.names, p.severities, test.labels)
