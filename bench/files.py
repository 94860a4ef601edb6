"""Random resized crops of JPEG files: ours beside torchvision's ImageFolder in a DataLoader.

Both give a shuffled pass of normalised batches with labels on the device, crops drawn anew, from
files that the first pass leaves in the page cache. The plain way is what an ImageNet training
script does; its worker processes are kept from one pass to the next.
Run it: `python -m bench.files`.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench.common import Case, alternate, report, speedup, spread
from richkd.data.dataset import Manifest
from richkd.data.folder import MEAN, STD, in_folders, scan
from richkd.data.imagesets import FileSet
from richkd.data.views import Center, Preprocessing, RandomResizedCrop
from richkd.engine import pick_device

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def main(
    *,
    images: int = 800,
    side: int = 500,
    size: int = 224,
    batch_size: int = 64,
    workers: int = 2,
    repeats: int = 7,
) -> None:
    """Crops of `size` pixels from `images` files of `side` x 3/4 `side` pixels.

    `workers` are threads for ours, processes for the plain way.
    """
    device = pick_device()
    with tempfile.TemporaryDirectory() as folder:
        manifest = photographs(Path(folder), images, side)
        views = RandomResizedCrop(size, SCALE, RATIO, flip=True)
        preprocessing = Preprocessing(MEAN, STD, Center(size * 8 // 7, size))
        files = FileSet(manifest, preprocessing, views, device, workers)
        loader = plain_loader(Path(manifest.root, "train"), size, batch_size, workers)
        cases = {"plain": plain_pass(loader, device), "ours": our_pass(files, batch_size)}
        times = alternate(cases, repeats)
    rows = {
        name: spread("images_per_s", [images / x for x in each]) for name, each in times.items()
    }
    rows["ours"] |= speedup(times["plain"], times["ours"])
    report(
        "files",
        rows,
        goal="no slower",
        images=images,
        kilobytes_an_image=manifest.bytes.mean() / 1000,
        size=size,
        batch_size=batch_size,
        workers=workers,
        repeats=repeats,
    )


def our_pass(files: FileSet, batch_size: int) -> Case:
    draw = torch.Generator(files.device)
    passes = iter(range(10**6))

    def case() -> None:
        draw.manual_seed(next(passes))
        order = torch.randperm(len(files), generator=draw, device=files.device)
        view_ids = files.views.sample(len(order), draw)
        batches = list(zip(order.split(batch_size), view_ids.split(batch_size)))
        files.begin_epoch(batches)
        for batch in batches:
            files.next_batch()
            files.batch(*batch)
            files.labels[batch[0]]

    return case


def plain_loader(folder: Path, size: int, batch_size: int, workers: int) -> DataLoader[Any]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, SCALE, RATIO),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        ImageFolder(folder, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def plain_pass(loader: DataLoader[Any], device: torch.device) -> Case:
    """Every batch of images and labels from `loader`, sent to the device."""

    def case() -> None:
        for images, labels in loader:
            images.to(device, non_blocking=True)
            labels.to(device, non_blocking=True)

    return case


def photographs(folder: Path, images: int, side: int) -> Manifest:
    """JPEGs of smooth random colours in several scales, about as large as ImageNet's.

    The files are in two classes, below `folder`/train.
    """
    rng = np.random.default_rng(0)
    shape = side * 3 // 4, side
    for i in range(images):
        pixels = np.zeros((*shape, 3))
        for scale, weight in ((64, 0.4), (16, 0.3), (4, 0.2), (2, 0.1)):
            coarse = rng.integers(0, 256, [n // scale + 2 for n in shape] + [3], dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
            pixels += weight * np.asarray(smooth)
        place = folder / "train" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg", quality=92)
    manifest, _ = scan(folder, in_folders(folder / "train", ["a", "b"]), "files")
    return manifest


if __name__ == "__main__":
    main()
