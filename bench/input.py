"""Crop, flip and normalise: the resident set beside torchvision's transforms in a DataLoader.

Both give a shuffled pass of batches with labels on the device. The plain way is what a CIFAR
training script does: a PIL image a sample, transformed by worker processes, which are kept from one
pass to the next so that starting them is not counted. Nor is, for ours, padding and normalising the
set once, which takes `build_s` seconds. Run it: `python -m bench.input`.
"""

import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from bench.common import alternate, report, speedup, spread, synchronize
from bench.protocol import MEAN, PAD, SIDE, STD
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.engine import start


class PlainImages(Dataset):
    """What torchvision's CIFAR100 with the usual training transforms is, without its files."""

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

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[i])), int(self.split.labels[i])


def main(images=50_000, batch_size=64, batches=300, workers=2, repeats=7) -> None:
    """`batches` batches are a pass that is timed; they come from all `images` images."""
    device = start()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, 100, images))
    views = Views(SIDE, SIDE, PAD, flip=True)
    began = time.perf_counter()
    resident = ResidentSet(split, MEAN, STD, views, device)
    synchronize()
    build = time.perf_counter() - began
    plain = PlainImages(split)
    agree(plain, resident)

    draw = torch.Generator(device).manual_seed(0)
    count = min(batches * batch_size, images)

    def ours():
        order = torch.randperm(images, generator=draw, device=device)[:count]
        view_ids = views.sample(len(order), draw)
        for ids, view in zip(order.split(batch_size), view_ids.split(batch_size)):
            resident.batch(ids, view)
            resident.labels[ids]

    loader = DataLoader(
        plain,
        batch_size,
        sampler=RandomSampler(plain, num_samples=count),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def baseline():
        for batch, labels in loader:
            batch.to(device, non_blocking=True)
            labels.to(device, non_blocking=True)

    times = alternate({"plain": baseline, "ours": ours}, repeats)
    rows = {name: spread("images_per_s", [count / x for x in each]) for name, each in times.items()}
    rows["ours"] |= speedup(times["plain"], times["ours"])
    report(
        "input", rows, goal="at least 25 times as fast", images=images, batch_size=batch_size, batches=batches, workers=workers,
        repeats=repeats, build_s=build,
    )  # fmt: skip


def agree(plain: PlainImages, resident: ResidentSet, images: int = 8) -> None:
    """ValueError unless what the plain way gives of an image is one of its views in the set."""
    every = torch.arange(len(resident.views), device=resident.device)
    for i in range(min(images, len(plain))):
        expected, label = plain[i]
        views = resident.batch(torch.full_like(every, i), every).cpu()
        error = (views - expected).abs().amax(dim=(1, 2, 3)).min().item()
        if error > 1e-5 or label != resident.labels[i]:
            raise ValueError(f"image {i}: no view is within {error:.2g} of torchvision's")


if __name__ == "__main__":
    main()
