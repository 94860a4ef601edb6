"""Crop, flip and normalise: the resident set beside torchvision's transforms in a DataLoader.

Both give a shuffled pass of batches with labels on the device. The plain way is what a CIFAR
training script does: a PIL image a sample, transformed by worker processes. The workers are kept
from one pass to the next, so that starting them is not counted. What ours does once is not counted
either: to pad and normalise the set, which takes `build_s` seconds.
Run it: `python -m bench.input`.
"""

import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from bench.common import Case, alternate, report, speedup, spread, synchronize
from bench.files import plain_pass
from bench.protocol import MEAN, PAD, PREPROCESSING, SIDE, STD
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.engine import pick_device


class PlainImages(Dataset[tuple[Any, ...]]):
    """The images (float32 (3, H, W), label) of torchvision's CIFAR100, usual training transforms.

    Only the data set's files are left out: images and labels are those of `split`.
    """

    def __init__(self, split: Split):
        self.split = split
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIDE, padding=PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return self.transform(Image.fromarray(self.split.images[i])), int(self.split.labels[i])


def main(
    *,
    images: int = 50_000,
    batch_size: int = 64,
    batches: int = 300,
    workers: int = 2,
    repeats: int = 7,
) -> None:
    """A pass that is timed has `batches` batches, drawn from all `images` images."""
    device = pick_device()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, 100, images))
    began = time.perf_counter()
    resident = ResidentSet(split, PREPROCESSING, Views(SIDE, SIDE, PAD, flip=True), device)
    synchronize()
    build = time.perf_counter() - began
    plain = PlainImages(split)
    agree(plain, resident)

    count = min(batches * batch_size, images)
    loader = DataLoader(
        plain,
        batch_size,
        sampler=RandomSampler(plain, num_samples=count),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    cases = {"plain": plain_pass(loader, device), "ours": our_pass(resident, batch_size, count)}
    times = alternate(cases, repeats)
    rows = {name: spread("images_per_s", [count / x for x in each]) for name, each in times.items()}
    rows["ours"] |= speedup(times["plain"], times["ours"])
    report(
        "input",
        rows,
        goal="at least 25 times as fast",
        images=images,
        batch_size=batch_size,
        batches=batches,
        workers=workers,
        repeats=repeats,
        build_s=build,
    )


def our_pass(resident: ResidentSet, batch_size: int, count: int) -> Case:
    """Batches of `count` images, drawn anew in each pass."""
    draw = torch.Generator(resident.device).manual_seed(0)

    def case() -> None:
        order = torch.randperm(len(resident), generator=draw, device=resident.device)[:count]
        view_ids = resident.views.sample(count, draw)
        for ids, view in zip(order.split(batch_size), view_ids.split(batch_size)):
            resident.batch(ids, view)
            resident.labels[ids]

    return case


def agree(plain: PlainImages, resident: ResidentSet, images: int = 8) -> None:
    """ValueError unless each image of the plain way is one of the image's views in the set."""
    every = torch.arange(len(resident.views), device=resident.device)
    for i in range(min(images, len(plain))):
        expected, label = plain[i]
        views = resident.batch(torch.full_like(every, i), every).cpu()
        error = (views - expected).abs().amax(dim=(1, 2, 3)).min().item()
        if error > 1e-5:
            raise ValueError(f"image {i}: no view is within {error:.2g} of torchvision's")
        if label != resident.labels[i]:
            raise ValueError(f"image {i} has label {label}, in the set {resident.labels[i]}")


if __name__ == "__main__":
    main()
