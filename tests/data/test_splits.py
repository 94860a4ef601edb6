"""Parts of a labelled set: spread evenly over the classes, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd.base.errors import InputError
from richkd.data.splits import divide, stratified

quick = settings(max_examples=40, deadline=None, derandomize=True)

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
BALANCED = st.tuples(st.integers(2, 6), st.integers(2, 12), st.integers(0, 9)).map(
    lambda x: np.random.default_rng(x[2]).permutation(np.arange(x[0] * x[1]) % x[0])
)


@quick
@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_stratified_draws_are_as_even_as_can_be(labels, share, seed):
    count = round(share * len(labels))
    indices = stratified(labels, count, np.random.default_rng(seed))
    assert len(indices) == count and (np.diff(indices) > 0).all()
    assert set(indices) <= set(range(len(labels)))
    drawn, there = (np.bincount(x, minlength=5) for x in (labels[indices], labels))
    # A class has fewer than another only by one, in the last round, or because it has no more.
    assert (np.minimum(drawn.max(initial=0) - 1, there) <= drawn).all()


@quick
@given(labels=LABELS, seed=st.integers(0, 99))
def test_stratified_draws_grow(labels, seed):
    counts = range(len(labels) + 1)
    draws = [set(stratified(labels, n, np.random.default_rng(seed))) for n in counts]
    assert all(few < more for few, more in zip(draws, draws[1:]))


def test_stratified_draws_follow_the_generator_and_its_seed_alone():
    labels = np.arange(1000) % 10
    first, again, other = (stratified(labels, 105, np.random.default_rng(x)) for x in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    seen = np.zeros(10)
    for seed in range(300):  # the five classes with one more are drawn at random
        seen += np.bincount(labels[stratified(labels, 105, np.random.default_rng(seed))]) - 10
    assert seen.sum() == 1500 and 110 < seen.min() and seen.max() < 190


def test_stratified_draws_no_more_than_there_is():
    with pytest.raises(ValueError, match="4 of 3 labels"):
        stratified(np.zeros(3, int), 4, np.random.default_rng(0))


@quick
@given(labels=BALANCED, seed=st.integers(0, 99), data=st.data())
def test_the_parts_of_a_division(labels, seed, data):
    classes, per_class = labels.max() + 1, np.bincount(labels)[0]
    validation = data.draw(st.integers(0, len(labels) - classes))
    least = per_class - -(-validation // classes)
    train_per_class = data.draw(st.just("all") | st.integers(1, least))
    captioned = data.draw(st.integers(0, len(labels) - validation))
    parts = divide(labels, validation, train_per_class, captioned, seed)
    sizes = {name: len(part) for name, part in parts.items()}
    total = len(labels) - validation if train_per_class == "all" else train_per_class * classes
    assert sizes == {"validation": validation, "train": total, "captioned": captioned}
    for part in parts.values():
        assert (np.diff(part) > 0).all() and set(part) <= set(range(len(labels)))
    held_out_counts = np.bincount(labels[parts["validation"]], minlength=classes)
    assert held_out_counts.max() - held_out_counts.min() <= 1
    if train_per_class != "all":
        assert (np.bincount(labels[parts["train"]]) == train_per_class).all()
    held_out = set(parts["validation"])
    assert not held_out & set(parts["train"]) and not held_out & set(parts["captioned"])


@quick
@given(labels=BALANCED, seed=st.integers(0, 99))
def test_a_division_is_repeatable_and_validation_the_same_whatever_is_trained_on(labels, seed):
    classes = labels.max() + 1
    first, again, other = (
        divide(labels, classes, *sizes, seed) for sizes in (("all", 0), ("all", 0), (1, classes))
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert np.array_equal(first["validation"], other["validation"])
    assert not len(first["captioned"])


def test_a_division_follows_the_seed():
    labels = np.arange(1000) % 10
    first, other = (divide(labels, 100, 20, 200, seed) for seed in (0, 1))
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_train_and_captioned_images_are_drawn_apart():
    parts = divide(np.arange(1000) % 10, 100, 20, 200, 0)
    assert 0 < len(set(parts["train"]) & set(parts["captioned"])) < 200


# Sizes of classes; validation, train_per_class and captioned; then what each part has of a class.
UNEVEN = {
    "validation": ((1, 15, 15), (6, "all", 0), [(0, 3, 3), (1, 12, 12), (0, 0, 0)]),
    "all that can go": ((1, 2, 4), (4, "all", 0), [(0, 1, 3), (1, 1, 1), (0, 0, 0)]),
    "training images": ((1, 15, 15), (6, 1, 3), [(0, 3, 3), (1, 1, 1), (1, 1, 1)]),
    "captions": ((1, 15, 15), (6, "all", 25), [(0, 3, 3), (1, 12, 12), (1, 12, 12)]),
}


def of_sizes(sizes, seed=0):
    """Labels in random order, so many of each class."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts(labels, parts):
    return {
        name: np.bincount(labels[ids], minlength=labels.max() + 1) for name, ids in parts.items()
    }


@pytest.mark.parametrize(("sizes", "asked", "expected"), UNEVEN.values(), ids=UNEVEN)
def test_classes_of_other_sizes_keep_a_training_image(sizes, asked, expected):
    labels = of_sizes(sizes)
    found = counts(labels, divide(labels, *asked, 0))
    assert [tuple(found[x]) for x in ("validation", "train", "captioned")] == expected


def test_a_class_smaller_than_its_share_of_the_validation_images_keeps_one():
    labels = of_sizes((100,) * 5 + (30,))
    found = counts(labels, divide(labels, 200, "all", 0, 0))
    assert found["validation"][5] == 29 and found["train"][5] == 1
    assert sorted(found["validation"][:5]) == [34, 34, 34, 34, 35]


SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sizes=SIZES, seed=st.integers(0, 99), data=st.data())
def test_any_division_has_the_asked_sizes_or_is_one_line(sizes, seed, data):
    labels = of_sizes(sizes, seed)
    validation = data.draw(st.integers(0, len(labels)))
    train_per_class = data.draw(st.just("all") | st.integers(1, 30))
    captioned = data.draw(st.integers(0, len(labels)))
    try:
        parts = divide(labels, validation, train_per_class, captioned, seed)
    except InputError as error:
        assert "\n" not in str(error)
        left = np.array(sizes)
        if validation <= len(labels) - len(sizes):
            held_out = stratified(labels, validation, np.random.default_rng([seed, 0]), keep=1)
            left -= np.bincount(labels[held_out], minlength=len(sizes))
            too_many = train_per_class != "all" and train_per_class > left.min()
            assert too_many or captioned > left.sum()  # refused only what is not there
            assert not too_many or str(error).endswith(f"of the class {left.argmin()}")
        return
    found = counts(labels, parts)
    assert found["validation"].sum() == validation and found["captioned"].sum() == captioned
    if train_per_class == "all":
        assert (found["train"] + found["validation"] == sizes).all() and found["train"].all()
    else:
        assert (found["train"] == train_per_class).all()
    held_out = set(parts["validation"])
    assert not held_out & set(parts["train"]) and not held_out & set(parts["captioned"])
    # As even as the classes allow: a class has fewer than another only because it has no more.
    for name, most in (
        ("validation", np.array(sizes) - 1),
        ("captioned", sizes - found["validation"]),
    ):
        assert (np.minimum(found[name].max() - 1, most) <= found[name]).all()


@quick
@given(sizes=SIZES, share=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_a_share_is_taken_of_each_class(sizes, share, seed):
    labels, sizes = of_sizes(sizes, seed), np.array(sizes)
    parts = divide(labels, share, "all", "all", seed)
    found = counts(labels, parts)
    held_out, left = found["validation"], found["train"]
    assert (held_out + left == sizes).all() and (left > 0).all()
    assert (held_out > 0)[sizes > 1].all()
    rounded = np.abs(held_out - share * sizes) <= 0.5
    assert (rounded | (held_out == 1) | (left == 1)).all()
    assert np.array_equal(parts["captioned"], parts["train"])


def test_divisions_of_classes_of_one_size_are_what_they_were():
    parts = divide(np.arange(40) % 4, 6, 3, 5, 0)
    assert {name: ids.tolist() for name, ids in parts.items()} == {
        "validation": [1, 2, 4, 11, 24, 27],
        "train": [3, 6, 8, 19, 20, 21, 25, 26, 32, 33, 34, 35],
        "captioned": [0, 12, 17, 23, 30],
    }


def test_the_class_that_has_too_few_is_named():
    with pytest.raises(InputError) as caught:
        divide(np.repeat(np.arange(3), (3, 15, 15)), 6, 2, 0, 0, ["cat", "dog", "emu"])
    assert str(caught.value) == (
        "dataset.train_per_class is 2: must be all or at most 1, what dataset.validation leaves of "
        "the class 'cat'"
    )


def test_classes_without_an_image_are_counted(capsys):
    labels = np.repeat(np.arange(3), (1, 15, 15))
    divide(labels, 6, "all", 2, 0, ["cat", "dog", "emu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 classes have no validation image, first 'cat'"
    assert lines[1].startswith("1 classes have no captioned image, first ")
    divide(labels, 0, "all", 3, 0, ["cat", "dog", "emu"])
    assert not capsys.readouterr().out


ASKED = {
    "validation": (
        (91, "all", 0),
        "dataset.validation is 91: must leave an image a class, so at most 90",
    ),
    "train": (
        (20, 9, 0),
        "dataset.train_per_class is 9: must be all or at most 8, "
        "what dataset.validation leaves of the class 0",
    ),
    "captioned": (
        (20, "all", 81),
        "dataset.captioned_images is 81: must be at most 80, "
        "what dataset.validation leaves of 100 images",
    ),
}


@pytest.mark.parametrize(("sizes", "text"), ASKED.values(), ids=ASKED)
def test_more_than_there_is_is_refused_by_its_param(sizes, text):
    with pytest.raises(InputError) as caught:
        divide(np.arange(100) % 10, *sizes, 0)
    assert str(caught.value) == text
