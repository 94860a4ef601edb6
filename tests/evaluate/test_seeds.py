"""Means, deviations and paired differences over seeds, against cases worked by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from richkd.base.errors import InputError
from richkd.evaluate.seeds import Difference, paired, summarize, write_training

# --- one model ----------------------------------------------------------------------------------


def test_summaries_by_hand() -> None:
    values = {"seed0": 1.0, "seed1": 2.0, "seed4": 6.0}
    results = {seed: {"a": value, "b": 5.0} for seed, value in values.items()}
    assert summarize(results) == {
        "a": {"mean": 3.0, "sd": pytest.approx(math.sqrt(7)), **values},
        "b": {"mean": 5.0, "sd": 0.0, "seed0": 5.0, "seed1": 5.0, "seed4": 5.0},
    }


def test_one_seed_has_no_deviation() -> None:
    assert summarize({"seed0": {"a": 0.5}}) == {"a": {"mean": 0.5, "seed0": 0.5}}


def test_a_metric_that_a_seed_lacks_has_no_mean() -> None:
    results = {"seed0": {"a": 1.0}, "seed1": {"a": 2.0, "b": 7.0}, "seed2": {"a": 3.0, "b": 8.0}}
    assert summarize(results) == {
        "a": {"mean": 2.0, "sd": 1.0, "seed0": 1.0, "seed1": 2.0, "seed2": 3.0},
        "b": {"seed1": 7.0, "seed2": 8.0},
    }


def test_training_results_have_the_columns_that_plots_need(here: Path) -> None:
    results = {"seed0": {"train_accuracy": 0.5}, "seed1": {"train_accuracy": 0.7}}
    curves = pd.DataFrame({"epoch": [1, 1], "ce": [2.0, 3.0], "seed": [0, 1]})
    write_training("x", curves, None)  # while it trains
    assert not (here / "metrics/train/x.json").exists()
    assert len(pd.read_csv(here / "metrics/curves/x.csv")) == 2
    write_training("x", curves, results)
    assert json.loads((here / "metrics/train/x.json").read_text()) == summarize(results)
    written = pd.read_csv(here / "metrics/curves/x.csv")
    assert list(written) == ["epoch", "ce", "seed", "validation_accuracy"]
    assert written.ce.tolist() == [2.0, 3.0] and written.validation_accuracy.isna().all()
    write_training("ready_made", pd.DataFrame(), {"seed0": {}})
    assert list(pd.read_csv(here / "metrics/curves/ready_made.csv")) == [
        "epoch", "validation_accuracy", "seed",
    ]  # fmt: skip


# --- one model against another ------------------------------------------------------------------


def test_a_difference_by_hand() -> None:
    reference = {"seed0": 1.0, "seed1": 5.0, "seed2": 9.0}
    values = {"seed2": 12.0, "seed0": 2.0, "seed1": 7.0}  # +3, +1, +2: pairs are found by seed
    difference = paired(values, reference)
    assert difference == Difference(2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert difference.shown
    # The same values in other pairs have the same mean, and a spread as large as the seeds'.
    shuffled = paired({"seed0": 7.0, "seed1": 12.0, "seed2": 2.0}, reference)
    assert shuffled.mean == 2.0 and not shuffled.shown


@pytest.mark.parametrize(
    ("mean", "error", "shown"),
    [(2.1, 1.0, True), (-2.1, 1.0, True), (2.0, 1.0, False), (0.0, 0.0, False), (9.0, None, False)],
)
def test_a_difference_is_shown_beyond_two_standard_errors(
    mean: float, error: float | None, shown: bool
) -> None:
    assert Difference(mean, error, 3).shown == shown


def test_of_one_seed_there_is_no_standard_error() -> None:
    assert paired({"seed3": 0.75}, {"seed3": 0.5}) == Difference(0.25, None, 1)


def test_common_seeds_alone_are_compared() -> None:
    values = {"seed0": 1.0, "seed1": 2.0, "seed7": 100.0}
    assert paired(values, {"seed1": 1.0, "seed0": 0.0, "seed2": -100.0}) == Difference(1.0, 0.0, 2)
    with pytest.raises(
        InputError, match="of seed0, seed1, seed7 and of seed2 have no common seed: run"
    ):
        paired(values, {"seed2": 1.0})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(0, 999))
def test_the_standard_error_is_that_of_a_paired_t_test(seeds: int, state: int) -> None:
    a, b = np.random.default_rng(state).normal(size=(2, seeds))
    names = [f"seed{i}" for i in range(seeds)]
    difference = paired(dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True)))
    assert difference.standard_error is not None
    t = ttest_rel(a, b).statistic
    assert difference.mean / difference.standard_error == pytest.approx(t)
