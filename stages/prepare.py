"""Make the data set: training, validation and test images, and captioned ones for CLIP."""

import numpy as np

from richkd import params
from richkd.data import cifar, digits, folder
from richkd.data.dataset import Info, save_info, save_split
from stages import run


def main() -> None:
    dataset = params.load("dataset").dataset
    if isinstance(dataset, params.Folders):
        splits, info = folder.prepare(dataset)
    else:
        prepare = digits.prepare if dataset.name == "digits" else cifar.prepare
        splits, classes = prepare(dataset)
        mean, std = statistics(splits["train"].images)
        info = Info(name=dataset.name, classes=classes, mean=mean, std=std)
    for name, split in splits.items():
        save_split(f"data/{name}.safetensors", split)
        print(f"data/{name}.safetensors: {len(split.labels)} images of {len(info.classes)} classes")
    save_info("data/info.json", info)


def statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel, in [0, 1], of uint8 (N, H, W, 3), from histograms."""
    levels, mean, std = np.arange(256) / 255, [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean.append(float(np.average(levels, weights=counts)))
        std.append(float(np.average((levels - mean[-1]) ** 2, weights=counts) ** 0.5))
    return mean, std


if __name__ == "__main__":
    run(main)
