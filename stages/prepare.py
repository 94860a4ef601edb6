"""Compose the data set: training, validation and test images, and captioned ones for CLIP."""

import numpy as np

from richkd import digits, params
from richkd.dataset import Info, Split, save_info, save_split
from richkd.errors import InputError
from stages import run


def main() -> None:
    dataset = params.load("dataset").dataset
    classes = digits.CLASSES if dataset.classes == "all" else list(dataset.classes)
    if unknown := [name for name in classes if name not in digits.CLASSES]:
        raise InputError(f"dataset.classes has {unknown[0]!r}: must be numbers, zero to ninety-nine")
    if len(classes) < 2:
        raise InputError(f"dataset.classes is {classes}: must name at least two")
    numbers = np.array([digits.CLASSES.index(name) for name in classes])
    counts = {
        "train": dataset.train_per_class * len(classes),
        "validation": dataset.validation_images,
        "test": dataset.test_images,
        "captioned": dataset.captioned_images,
    }
    for name, count in counts.items():
        if count < len(classes):
            raise InputError(f"dataset has {count} {name} images: at least {len(classes)}, one a class")
    pools = digits.pools(dataset.seed)
    pools["captioned"] = pools["train"]
    for stream, (name, count) in enumerate(counts.items(), start=1):
        rng = np.random.default_rng([dataset.seed, stream])
        images, labels = digits.compose(pools[name], numbers, count, rng)
        save_split(f"data/{name}.safetensors", Split(images, labels))
        print(f"data/{name}.safetensors: {count} images of {len(classes)} classes")
        if name == "train":
            pixels = images.reshape(-1, 3) / 255
            mean, std = pixels.mean(0).tolist(), pixels.std(0).tolist()
            save_info("data/info.json", Info(name="digits", classes=classes, mean=mean, std=std))


if __name__ == "__main__":
    run(main)
