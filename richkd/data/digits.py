"""The embedded data set: two-digit numbers composed of scikit-learn's 1,797 handwritten digits.

Images are 16x16 RGB, the tens digit left and the ones digit right, each shifted vertically at
random; 100 classes, "zero" to "ninety-nine", so that class names carry meaning and classes share
parts. Each split is composed from its own pool of scans: no scan is in two splits.
"""

import numpy as np
import numpy.typing as npt

from richkd.base import memory
from richkd.base.errors import InputError
from richkd.data.dataset import Split
from richkd.params import Digits

Scans = npt.NDArray[np.uint8]  # (n, 8, 8), all of one digit

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
CLASSES = UNITS + [
    ten + (f"-{unit}" if unit != "zero" else "") for ten in TENS for unit in UNITS[:10]
]
POOLS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def pools(seed: int) -> dict[str, list[Scans]]:
    """The scans of each pool, as ten arrays uint8 (n, 8, 8): those of digit 0, of digit 1, …

    Every pool gets its share of each digit.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng([seed, 0])
    split: dict[str, list[Scans]] = {name: [] for name in POOLS}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(scans.target == digit))
        ends = np.round(np.cumsum(list(POOLS.values())) * len(order)).astype(int)
        for name, part in zip(split, np.split(order, ends[:-1])):
            split[name].append(images[part])
    return split


def compose(
    pool: list[Scans], numbers: npt.NDArray[np.int64], count: int, rng: np.random.Generator
) -> Split:
    """`count` images of the two-digit `numbers`, as many of each as of any other, in random order.

    Each of `numbers` is a class: images uint8 (count, 16, 16, 3), and labels int64 (count,), which
    are positions in `numbers`.
    """
    labels = rng.permutation(np.arange(count) % len(numbers))
    images = np.zeros((count, 16, 16), np.uint8)
    for side, digits in enumerate(divmod(numbers[labels], 10)):
        tops = rng.integers(0, 9, count)
        for i, (digit, top) in enumerate(zip(digits, tops)):
            scan = pool[digit][rng.integers(len(pool[digit]))]
            images[i, top : top + 8, side * 8 : side * 8 + 8] = scan
    return Split(np.repeat(images[..., None], 3, axis=-1), labels)


def prepare_digits(p: Digits) -> tuple[dict[str, Split], list[str]]:
    """The splits train, validation, test and captioned, and the classes' names.

    Raises InputError for unknown class names, for less than two classes, and for a split with less
    than one image a class.
    """
    classes = CLASSES if p.classes == "all" else list(p.classes)
    if unknown := [name for name in classes if name not in CLASSES]:
        raise InputError(
            f"dataset.classes has {unknown[0]!r}: must be numbers, zero to ninety-nine"
        )
    if len(classes) < 2:
        raise InputError(f"dataset.classes is {classes}: must name at least two")
    numbers = np.array([CLASSES.index(name) for name in classes])
    counts = {
        "train": p.train_per_class * len(classes),
        "validation": p.validation_images,
        "test": p.test_images,
        "captioned": p.captioned_images,
    }
    for name, count in counts.items():
        if count < len(classes):
            raise InputError(
                f"dataset has {count} {name} images: at least {len(classes)}, one for each class"
            )
    # A pixel's three channels, once more while they are written.
    needed = 2 * 3 * 16 * 16 * sum(counts.values())
    memory.check("the images", needed, memory.available(), "ask for fewer in dataset")
    scans = pools(p.seed)
    scans["captioned"] = scans["train"]
    splits = {}
    for stream, (name, count) in enumerate(counts.items(), start=1):
        rng = np.random.default_rng([p.seed, stream])
        splits[name] = compose(scans[name], numbers, count, rng)
    return splits, classes
