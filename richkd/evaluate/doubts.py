"""What a reader must know before believing the results: sentences for the top of the report."""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import pandas as pd

from richkd.evaluate.scores import LARGEST, read_logits

ERRORS = 3  # binomial standard deviations by which an accuracy must exceed chance


def at_chance(accuracies: Mapping[str, Mapping[str, float]], labels: np.ndarray) -> list[str]:
    """Models with a run that is hardly better than to always answer the most frequent class.

    `accuracies` has each model's top-1 accuracies by seed, on the images of `labels`, (N,).
    """
    chance = np.bincount(labels).max() / len(labels)
    bound = chance + ERRORS * sqrt(chance * (1 - chance) / len(labels))
    return [
        f"{model} is at chance: its accuracy is {_percent(accuracy)} ({seed}). To always answer "
        f"the most frequent class gives {_percent(chance)}, and {ERRORS} binomial standard "
        f"deviations more are {_percent(bound)}."
        for model, by_seed in accuracies.items()
        for seed, accuracy in [min(by_seed.items(), key=lambda item: item[1])]
        if accuracy <= bound
    ]


def clipped(models: Sequence[str], labels: np.ndarray) -> list[str]:
    """Models with clipped logits on the test images, since they were out of range."""
    counts = {}
    for model in models:
        logits = read_logits(model, "test", (None, len(labels), None), labels, "r")
        counts[model] = sum(int((np.abs(run) >= np.float32(LARGEST)).sum()) for run in logits)
    return [
        f"{model} diverged: {count:,} of its logits on test images are clipped, since they were "
        "too large or not numbers."
        for model, count in counts.items()
        if count
    ]


def better_choice(choices: pd.DataFrame) -> list[str]:
    """The fused teacher that would have been more accurate, if one surely would have been.

    `choices` as in `CHOICE_COLUMNS`. A choice surely is more accurate if the 95 % interval of its
    gain in accuracy lies above the whole interval of the choice that the students learn from.
    """
    if choices.empty:
        return []
    shipped = choices[choices.shipped].iloc[0]
    better = choices[choices.accuracy_gain_low > shipped.accuracy_gain_high]
    if better.empty:
        return []
    best = better.loc[better.accuracy.idxmax()]
    return [
        "Another fused teacher would have been far better on the validation images: with "
        f"{describe(best)} its accuracy is {_percent(best.accuracy)}, with {describe(shipped)}, "
        f"which the students learned from, {_percent(shipped.accuracy)}."
    ]


def describe(choice: pd.Series) -> str:
    """A row of `metrics/fusion/choices.csv` in words."""
    each = " for most classes" if choice.chosen == "per class" else ""
    return f"α = {choice.alpha:.2g}{each} and the alignment {choice['align']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
