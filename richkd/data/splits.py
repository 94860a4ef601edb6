"""Parts of a labelled set for training and validation, with the classes spread evenly."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from richkd.base.errors import InputError

Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.integer[Any]]


def stratified(labels: Indices, count: int, rng: np.random.Generator, keep: int = 0) -> Indices:
    """`count` different indices into `labels` (N,), sorted, spread over the classes evenly.

    `keep` images of each class are never drawn. A larger count from the same state of `rng` gives
    the same indices and further ones. Raises ValueError if there are fewer than `count`.
    """
    order, turn, sizes = _in_turns(labels, rng)
    free = turn < sizes - keep
    order, turn = order[free], turn[free]
    if count > len(order):
        raise ValueError(f"{count} of {len(order)} labels")
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def share_of_each(labels: Indices, share: float, rng: np.random.Generator) -> Indices:
    """Different indices into `labels` (N,), sorted: a share of each class, rounded.

    Of a class with two images or more at least one is drawn, and at least one is not.
    """
    order, turn, sizes = _in_turns(labels, rng)
    return np.sort(order[turn < np.clip(np.rint(share * sizes), 1, sizes - 1)])


def _in_turns(labels: Indices, rng: np.random.Generator) -> tuple[Indices, Numbers, Numbers]:
    """The indices into `labels` (N,) in random order; for each its turn, and its class's size.

    The turn is the number of an image within its class, from 0: the first image of every class has
    turn 0, the second turn 1, and so on.
    """
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    turn = pd.Series(shuffled).groupby(shuffled).cumcount().to_numpy()
    _, positions, sizes = np.unique(shuffled, return_inverse=True, return_counts=True)
    return order, turn, sizes[positions]


def divide(
    labels: Indices,
    validation: int | float,
    train_per_class: int | Literal["all"],
    captioned: int | Literal["all"],
    seed: int,
    names: Sequence[str] = (),
) -> dict[str, Indices]:
    """Sorted indices into the training images' `labels` (N,) for each part.

    "validation" has `validation` images, spread evenly; a float is a share of each class. The part
    depends only on `validation` and the seed, and leaves every class an image. "train" has
    `train_per_class` images of each class from the rest, or the whole rest. "captioned" is drawn
    from the rest too, or is the whole rest, and can share images with "train". Prints how many
    classes have no image in a part. Raises InputError if a part is to have more images than there
    are; the message calls a class by its name in `names`, or by its number.
    """
    classes = np.unique(labels)
    held_out = _validation(labels, validation, np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    train = rest
    if train_per_class != "all":
        _, counts = np.unique_counts(labels[rest])
        if train_per_class > (least := counts.min()):
            smallest = _name(classes[counts.argmin()], names)
            raise InputError(
                f"dataset.train_per_class is {train_per_class}: must be all or at most {least}, "
                f"what dataset.validation leaves of the class {smallest}"
            )
        rng = np.random.default_rng([seed, 1])
        train = rest[stratified(labels[rest], train_per_class * len(classes), rng)]
    if captioned == "all":
        captioned = len(rest)
    if captioned > len(rest):
        raise InputError(
            f"dataset.captioned_images is {captioned}: must be at most {len(rest)}, what "
            f"dataset.validation leaves of {len(labels)} images"
        )
    rng = np.random.default_rng([seed, 2])
    spread = rest[stratified(labels[rest], captioned, rng)]
    for part, ids in (("validation", held_out), ("captioned", spread)):
        if len(ids) and len(without := np.setdiff1d(classes, labels[ids])):
            print(f"{len(without)} classes have no {part} image, first {_name(without[0], names)}")
    return {"validation": held_out, "train": train, "captioned": spread}


def _validation(labels: Indices, wanted: int | float, rng: np.random.Generator) -> Indices:
    """The number or the share of images for validation, which leaves every class an image."""
    if isinstance(wanted, float):
        return share_of_each(labels, wanted, rng)
    if wanted > (most := len(labels) - len(np.unique(labels))):
        raise InputError(
            f"dataset.validation is {wanted}: must leave an image a class, so at most {most}"
        )
    return stratified(labels, wanted, rng, keep=1)


def _name(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if names else str(label)
