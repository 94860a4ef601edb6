"""Parts of a labelled set to train and validate with, even over its classes."""

from typing import Literal

import numpy as np
import pandas as pd

from richkd.base.errors import InputError


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different indices into `labels` (N,), sorted, as even over the classes as can be.

    A larger count from the same state of `rng` gives the same indices and more.
    Raises ValueError where `count` is more than N.
    """
    if count > len(labels):
        raise ValueError(f"{count} of {len(labels)} labels")
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    # Which of its class, 0, 1, …: first take the first of each class, then the second of each.
    turn = pd.Series(shuffled).groupby(shuffled).cumcount()
    return np.sort(order[np.argsort(turn.to_numpy(), kind="stable")[:count]])


def divide(
    labels: np.ndarray,
    validation: int,
    train_per_class: int | Literal["all"],
    captioned: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Sorted indices into the training images' `labels` (N,) for each part.

    "validation" depends on its size and the seed alone; "train" is `train_per_class` images a class
    of the rest, or all; "captioned", also of the rest, may share images with "train".
    Raises InputError where more is asked for than there is.
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
