"""Parts of a labelled set for training and validation, with the classes spread evenly."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from richkd.base.errors import InputError

Indices = npt.NDArray[np.int64]


def stratified(labels: Indices, count: int, rng: np.random.Generator, keep: int = 0) -> Indices:
    """`count` different indices into `labels` (N,), sorted, spread over the classes evenly.

    `keep` images of each class are never drawn. A larger count from the same state of `rng` gives
    the same indices and further ones. Raises ValueError if `count` is larger than what there is.
    """
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    # The number of an image within its class, from 0. First the first image of every class is
    # taken, then the second of every class, and so on.
    turn = pd.Series(shuffled).groupby(shuffled).cumcount().to_numpy()
    _, positions, sizes = np.unique(shuffled, return_inverse=True, return_counts=True)
    free = turn < sizes[positions] - keep
    order, turn = order[free], turn[free]
    if count > len(order):
        raise ValueError(f"{count} of {len(order)} labels")
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def divide(
    labels: Indices,
    validation: int,
    train_per_class: int | Literal["all"],
    captioned: int,
    seed: int,
    names: Sequence[str] = (),
) -> dict[str, Indices]:
    """Sorted indices into the training images' `labels` (N,) for each part.

    "validation" depends only on its size and the seed, and leaves every class an image. "train" is
    `train_per_class` images a class of the rest, or the whole rest. "captioned" is drawn from the
    rest too, and can share images with "train". Prints how many classes have no image in a part.
    Raises InputError if a part is to have more images than there are; it calls a class by its name
    in `names`, or by its number.
    """
    classes = np.unique(labels)
    if validation > (most := len(labels) - len(classes)):
        raise InputError(
            f"dataset.validation is {validation}: must leave an image a class, so at most {most}"
        )
    held_out = stratified(labels, validation, np.random.default_rng([seed, 0]), keep=1)
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


def _name(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if names else str(label)
