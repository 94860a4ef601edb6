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


ASKED = {
    "validation": (
        (91, "all", 0),
        "dataset.validation is 91: must leave an image a class, so at most 90",
    ),
    "train": (
        (20, 9, 0),
        "dataset.train_per_class is 9: must be all or at most 8, "
        "what dataset.validation leaves of each class",
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
