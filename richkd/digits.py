"""The embedded data set: two-digit numbers composed of scikit-learn's 1,797 handwritten digits.

Images are 16x16 RGB, the tens digit left and the ones digit right, each shifted vertically at
random; 100 classes, "zero" to "ninety-nine", so that class names carry meaning and classes share
parts. Each split is composed from its own pool of scans: no scan is in two splits.
"""

import numpy as np

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
CLASSES = UNITS + [
    ten + (f"-{unit}" if unit != "zero" else "") for ten in TENS for unit in UNITS[:10]
]
POOLS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def pools(seed: int) -> dict[str, list[np.ndarray]]:
    """Split the scans: for each pool ten arrays uint8 (n, 8, 8), one a digit, stratified."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng([seed, 0])
    split = {name: [] for name in POOLS}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(scans.target == digit))
        ends = np.round(np.cumsum(list(POOLS.values())) * len(order)).astype(int)
        for name, part in zip(split, np.split(order, ends[:-1])):
            split[name].append(images[part])
    return split


def compose(
    pool: list[np.ndarray], numbers: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of two-digit `numbers`, one a class and as even as can be, in random order.

    Returns images uint8 (count, 16, 16, 3) and labels int64 (count,), positions in `numbers`.
    """
    labels = rng.permutation(np.arange(count) % len(numbers))
    images = np.zeros((count, 16, 16), np.uint8)
    for side, digits in enumerate(divmod(numbers[labels], 10)):
        tops = rng.integers(0, 9, count)
        for i, (digit, top) in enumerate(zip(digits, tops)):
            scan = pool[digit][rng.integers(len(pool[digit]))]
            images[i, top : top + 8, side * 8 : side * 8 + 8] = scan
    return np.repeat(images[..., None], 3, axis=-1), labels
