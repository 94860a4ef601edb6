"""Means, standard deviations and paired differences over seeds."""

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Annotated, NamedTuple

import pandas as pd
from pydantic import AfterValidator, FiniteFloat

from richkd.base.errors import InputError
from richkd.base.files import replacing, write_json


def _has_mean(figures: dict[str, float]) -> dict[str, float]:
    if "mean" not in figures:
        raise ValueError("there is no mean")
    return figures


# What `summarize` returns for one metric of a model, and for all of them.
Figures = Annotated[dict[str, FiniteFloat], AfterValidator(_has_mean)]
Metrics = dict[str, Figures]


# The columns that `metrics/curves/<name>.csv` always has, beside one for each loss term. Not every
# epoch has a validation accuracy. Models that are trained here also have `test_accuracy`.
CURVES = {"epoch": int, "validation_accuracy": float, "seed": int}


def loss_terms(curves: pd.DataFrame) -> list[str]:
    """The columns of a model's curves beside CURVES."""
    return [name for name in map(str, curves) if name not in CURVES]


# --- one model ----------------------------------------------------------------------------------


def summarize(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`{seed: {metric: value}}` to `{metric: {mean, sd, seed: value, ...}}`.

    sd is the sample's standard deviation (n - 1); with one seed it is left out. A metric that some
    seeds lack has neither mean nor sd, since these would be of fewer seeds than for other metrics.
    """
    summary = {}
    for metric in dict.fromkeys(metric for result in results.values() for metric in result):
        values = {seed: result[metric] for seed, result in results.items() if metric in result}
        sd = {"sd": stdev(values.values())} if len(values) > 1 else {}
        means = {"mean": mean(values.values()), **sd} if len(values) == len(results) else {}
        summary[metric] = {**means, **values}
    return summary


def write_training(
    name: str, curves: pd.DataFrame, results: Mapping[str, Mapping[str, float]] | None
) -> None:
    """Write `metrics/curves/<name>.csv` and, with results by seed, `metrics/train/<name>.json`.

    `curves` has a row for each seed and epoch. Columns of CURVES that `curves` lacks are written
    empty. `results` is None while the training still goes on.
    """
    columns = dict.fromkeys([*curves, *CURVES])
    with replacing(f"metrics/curves/{name}.csv") as part:
        curves.reindex(columns=list(columns)).to_csv(part, index=False)
    if results is None:
        return
    write_json(f"metrics/train/{name}.json", summarize(results))
    print(f"metrics/train/{name}.json, metrics/curves/{name}.csv")


# --- one model against another ------------------------------------------------------------------


class Difference(NamedTuple):
    """A model minus a reference, seed by seed.

    `mean` is the mean difference. Its `standard_error` is the sample's standard deviation of the
    differences, divided by the root of the number of seeds; None with one seed.
    """

    mean: float
    standard_error: float | None
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether the difference is beyond two standard errors."""
        return self.standard_error is not None and abs(self.mean) > 2 * self.standard_error


def paired(values: Mapping[str, float], reference: Mapping[str, float]) -> Difference:
    """The difference of one metric of two models, each `{seed: value}`, over their common seeds.

    A seed decides the order and the augmentation of the training images for both models, so this
    part of the spread cancels in the difference. InputError where the models have no common seed.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if not differences:
        raise InputError(
            f"metrics of {', '.join(values)} and of {', '.join(reference)} have no common seed: "
            "run `dvc repro`"
        )
    count = len(differences)
    error = stdev(differences) / count**0.5 if count > 1 else None
    return Difference(mean(differences), error, count)
