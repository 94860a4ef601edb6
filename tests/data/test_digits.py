"""The composed data set: no scan in two splits, labels that say what the image shows."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from richkd import params
from richkd.base.errors import InputError
from richkd.data import digits

POOLS = digits.pools(0)
# Digit d as a scan that is d + 1 everywhere.
FLAT = [np.full((1, 8, 8), digit + 1, np.uint8) for digit in range(10)]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_scan_is_in_exactly_one_pool():
    source = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert len(np.unique(source, axis=0)) == len(source) == 1797
    pooled = [scan.tobytes() for pool in POOLS.values() for scans in pool for scan in scans]
    assert sorted(pooled) == sorted(scan.tobytes() for scan in source)


def test_pools_hold_each_digit_in_the_stated_shares():
    assert list(POOLS) == list(digits.POOLS) == ["train", "validation", "test"]
    count = np.bincount(load_digits().target)
    for name, share in digits.POOLS.items():
        assert [len(scans) for scans in POOLS[name]] == pytest.approx(share * count, abs=1)


def test_a_pool_files_each_scan_under_its_digit():
    scans = load_digits()
    label = {
        np.round(image * (255 / 16)).astype(np.uint8).tobytes(): target
        for image, target in zip(scans.images, scans.target)
    }
    for pool in POOLS.values():
        for digit, scans_of_digit in enumerate(pool):
            assert {label[scan.tobytes()] for scan in scans_of_digit} == {digit}


def test_pools_follow_the_seed():
    again, other = digits.pools(0), digits.pools(1)
    assert all(np.array_equal(a, b) for a, b in zip(POOLS["train"], again["train"]))
    assert not all(np.array_equal(a, b) for a, b in zip(POOLS["train"], other["train"]))


def test_names_of_the_hundred_classes():
    assert len(set(digits.CLASSES)) == 100
    names = {
        0: "zero",
        9: "nine",
        10: "ten",
        13: "thirteen",
        19: "nineteen",
        20: "twenty",
        21: "twenty-one",
        40: "forty",
        55: "fifty-five",
        90: "ninety",
        99: "ninety-nine",
    }
    assert {number: digits.CLASSES[number] for number in names} == names


def test_images_are_rgb_and_labels_balanced():
    images, labels = digits.compose(POOLS["train"], np.arange(100), 350, rng())
    assert images.shape == (350, 16, 16, 3) and images.dtype == np.uint8
    assert labels.shape == (350,) and labels.dtype == np.int64
    assert set(np.bincount(labels, minlength=100)) == {3, 4}
    assert (images == images[..., :1]).all() and images.max() == 255
    assert not np.array_equal(labels, np.sort(labels))


def test_the_tens_are_left_and_the_ones_right():
    images, labels = digits.compose(FLAT, np.arange(100), 400, rng())
    for image, label in zip(images[..., 0], labels):
        for half, digit in ((image[:, :8], label // 10), (image[:, 8:], label % 10)):
            rows = np.flatnonzero(half.any(1))
            assert set(half[rows].ravel()) == {digit + 1}
            assert len(rows) == 8 and rows[-1] - rows[0] == 7  # a whole scan


def test_each_digit_is_shifted_on_its_own_over_the_whole_height():
    images, _ = digits.compose(FLAT, np.arange(100), 900, rng())
    tops = np.stack([(images[:, :, side, 0] > 0).argmax(1) for side in (0, 15)], axis=1)
    assert len(np.unique(tops, axis=0)) == 81


def test_a_subset_of_the_numbers_gives_positions_in_it():
    numbers = np.array([42, 7])
    images, labels = digits.compose(FLAT, numbers, 10, rng())
    assert sorted(labels) == [0] * 5 + [1] * 5
    shown = 10 * (images[:, :, 0, 0].max(1) - 1) + images[:, :, 15, 0].max(1) - 1
    np.testing.assert_array_equal(shown, numbers[labels])


def test_images_follow_the_generator():
    first, again, other = (
        digits.compose(POOLS["test"], np.arange(100), 60, rng(seed)) for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


SECTION = {
    "name": "digits", "classes": "all", "train_per_class": 1, "validation_images": 100,
    "test_images": 100, "captioned_images": 100, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ("one",)}, "dataset.classes is ['one']: must name at least two"),
        ({"test_images": 99}, "dataset has 99 test images: at least 100, one for each class"),
    ],
)
def test_what_cannot_be_composed_is_one_line(changes, said):
    with pytest.raises(InputError) as caught:
        digits.prepare_digits(params.Digits(**SECTION | changes))
    assert str(caught.value) == said


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    with pytest.raises(InputError) as caught:
        digits.prepare_digits(params.Digits(**SECTION | {"train_per_class": 10**4}))
    assert str(caught.value) == (
        "the images take 1.5 GB of memory, 1.0 are free: ask for fewer in dataset"
    )
