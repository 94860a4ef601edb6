"""Random resized crops of JPEG files: ours beside torchvision's ImageFolder in a DataLoader.

Both give a shuffled pass of normalised batches with labels on the device, crops drawn anew, from
files that the first pass leaves in the page cache. The plain way is what an ImageNet training script
does; its worker processes are kept from one pass to the next. Run it: `python -m bench.files`.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench.common import alternate, report, speedup, spread
from richkd.data.dataset import Manifest
from richkd.data.folder import MEAN, STD, in_folders, scan
from richkd.data.imagesets import FileSet
from richkd.data.views import Center, RandomResizedCrop
from richkd.engine import start

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def main(images=800, side=500, size=224, batch_size=64, workers=2, repeats=7) -> None:
    """So many files of `side` x 3/4 `side` pixels; `workers` threads for ours, processes for the other."""
    device = start()
    with tempfile.TemporaryDirectory() as folder:
        manifest = photographs(Path(folder), images, side)
        measure(manifest, size, batch_size, workers, repeats, device)


def measure(
    manifest: Manifest, size: int, batch_size: int, workers: int, repeats: int, device: torch.device
) -> None:
    views = RandomResizedCrop(size, SCALE, RATIO, flip=True)
    files = FileSet(manifest, MEAN, STD, views, Center(size * 8 // 7, size), device, workers)
    draw = torch.Generator(device)
    passes = iter(range(10**6))

    def ours():
        draw.manual_seed(next(passes))
        order = torch.randperm(len(files), generator=draw, device=device)
        batches = list(
            zip(order.split(batch_size), views.sample(len(order), draw).split(batch_size))
        )
        files.start(batches)
        for batch in batches:
            files.advance()
            files.batch(*batch)
            files.labels[batch[0]]

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, SCALE, RATIO),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        ImageFolder(Path(manifest.root, "train"), transform), batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip

    def plain():
        for batch, labels in loader:
            batch.to(device, non_blocking=True)
            labels.to(device, non_blocking=True)

    times = alternate({"plain": plain, "ours": ours}, repeats)
    rows = {
        name: spread("images_per_s", [len(files) / x for x in each]) for name, each in times.items()
    }
    rows["ours"] |= speedup(times["plain"], times["ours"])
    report(
        "files", rows, goal="no slower", images=len(files), kilobytes_an_image=manifest.bytes.mean() / 1000,
        size=size, batch_size=batch_size, workers=workers, repeats=repeats,
    )  # fmt: skip


def photographs(folder: Path, images: int, side: int) -> Manifest:
    """JPEGs of smooth random colours in several scales, about as large as ImageNet's, in two classes."""
    rng = np.random.default_rng(0)
    shape = side * 3 // 4, side
    for i in range(images):
        pixels = np.zeros((*shape, 3))
        for scale, weight in ((64, 0.4), (16, 0.3), (4, 0.2), (2, 0.1)):
            coarse = rng.integers(0, 256, [n // scale + 2 for n in shape] + [3], dtype=np.uint8)
            pixels += weight * np.asarray(
                Image.fromarray(coarse).resize(shape[::-1], Image.BICUBIC)
            )
        place = folder / "train" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg", quality=92)
    manifest, _ = scan(folder, in_folders(folder / "train", ["a", "b"]), "files")
    return manifest


if __name__ == "__main__":
    main()
