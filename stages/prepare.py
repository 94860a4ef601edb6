"""Make the data set: training, validation and test images, and captioned ones for CLIP."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from richkd import params
from richkd.data.cifar import prepare_cifar
from richkd.data.dataset import Info, Manifest, Split, save_info, save_split
from richkd.data.digits import prepare_digits
from richkd.data.folder import prepare_folders
from stages import run


def main() -> None:
    dataset = params.load("dataset").dataset
    splits: Mapping[str, Split | Manifest]
    if isinstance(dataset, params.Folder | params.ImageNet):
        splits, info = prepare_folders(dataset)
        params.check_classes(len(info.classes))
    else:
        superclasses: dict[str, str] = {}
        if isinstance(dataset, params.Digits):
            arrays, classes = prepare_digits(dataset)
        else:
            arrays, classes, superclasses = prepare_cifar(dataset)
        mean, std = statistics(arrays["train"].images)
        splits = arrays
        info = Info(
            name=dataset.name, classes=classes, mean=mean, std=std, superclasses=superclasses
        )
    for name, split in splits.items():
        save_split(f"data/{name}.safetensors", split)
        print(f"data/{name}.safetensors: {len(split.labels)} images of {len(info.classes)} classes")
    save_info("data/info.json", info)


def statistics(images: npt.NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel, in [0, 1], of uint8 (N, H, W, 3), from histograms."""
    levels = np.arange(256) / 255
    mean: list[float] = []
    std: list[float] = []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean.append(float(np.average(levels, weights=counts)))
        std.append(float(np.average((levels - mean[-1]) ** 2, weights=counts) ** 0.5))
    return mean, std


if __name__ == "__main__":
    run(main)
