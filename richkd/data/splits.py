"""Parts of a labelled set for training and validation, with the classes spread evenly."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from richkd.base.errors import InputError

Indices = npt.NDArray[np.int64]


def stratified(labels: Indices, count: int, rng: np.random.Generator) -> Indices:
    """`count` different indices into `labels` (N,), sorted, spread over the classes evenly.

    A larger count from the same state of `rng` gives the same indices and further ones.
    Raises ValueError if `count` is larger than N.
    """
    if count > len(labels):
        raise ValueError(f"{count} of {len(labels)} labels")
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    # The number of an image within its class, from 0. First the first image of every class is
    # taken, then the second of every class, and so on.
    turn = pd.Series(shuffled).groupby(shuffled).cumcount()
    return np.sort(order[np.argsort(turn.to_numpy(), kind="stable")[:count]])


def divide(
    labels: Indices,
    validation: int,
    train_per_class: int | Literal["all"],
    captioned: int,
    seed: int,
) -> dict[str, Indices]:
    """Sorted indices into the training images' `labels` (N,) for each part.

    "validation" depends only on its size and the seed. "train" is `train_per_class` images a class
    of the rest, or the whole rest. "captioned" is drawn from the rest too, and can share images
    with "train". Raises InputError if a part is to have more images than there are.
    """
    classes = len(np.unique(labels))
    if validation > (most := len(labels) - classes):
        raise InputError(
            f"dataset.validation is {validation}: must leave an image a class, so at most {most}"
        )
    held_out = stratified(labels, validation, np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    train = rest
    if train_per_class != "all":
        least = np.unique_counts(labels[rest]).counts.min()
        if train_per_class > least:
            raise InputError(
                f"dataset.train_per_class is {train_per_class}: must be all or at most {least}, "
                "what dataset.validation leaves of each class"
            )
        rng = np.random.default_rng([seed, 1])
        train = rest[stratified(labels[rest], train_per_class * classes, rng)]
    if captioned > len(rest):
        raise InputError(
            f"dataset.captioned_images is {captioned}: must be at most {len(rest)}, what "
            f"dataset.validation leaves of {len(labels)} images"
        )
    rng = np.random.default_rng([seed, 2])
    return {
        "validation": held_out,
        "train": train,
        "captioned": rest[stratified(labels[rest], captioned, rng)],
    }
