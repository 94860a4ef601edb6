"""The warnings at the top of the report, and cases without a warning."""

import numpy as np
import pandas as pd
import pytest

from richkd.base.files import write_array
from richkd.evaluate import doubts
from richkd.evaluate.scores import LARGEST

LABELS = np.repeat(np.arange(10), 10)  # chance is 0.1, and three deviations more are 0.19


@pytest.mark.parametrize("accuracy, warned", [(0.0, True), (0.18, True), (0.2, False)])
def test_a_run_at_chance(accuracy: float, warned: bool) -> None:
    found = doubts.at_chance(
        {"good": {"seed0": 0.9}, "x": {"seed0": 0.9, "seed4": accuracy}}, LABELS
    )
    assert [line[:13] for line in found] == ["x is at chanc"] * warned
    assert all("(seed4)" in line and "gives 10.0 %" in line and "19.0 %" in line for line in found)


def test_chance_is_the_most_frequent_class() -> None:
    assert doubts.at_chance({"x": {"seed0": 0.5}}, np.array([0] * 50 + list(range(1, 51))))


def test_clipped_logits_are_counted(here: object) -> None:
    logits = np.ones((2, 100, 10), np.float32)
    write_array("predictions/sound/test.npy", logits)
    logits[1, 5, :3] = -LARGEST
    write_array("predictions/x/test.npy", logits)
    (line,) = doubts.clipped(["sound", "x"], LABELS)
    assert line.startswith("x diverged: 3 of its logits")


@pytest.mark.parametrize(
    "used, better, warned",
    [((0.0, 0.0), (0.01, 0.03), True), ((0.0, 0.0), (-0.01, 0.05), False),
     ((-0.04, -0.02), (0.0, 0.0), True), ((-0.04, 0.01), (0.0, 0.0), False)],
)  # fmt: skip
def test_a_choice_that_is_surely_more_accurate(
    used: tuple[float, float], better: tuple[float, float], warned: bool
) -> None:
    table = pd.DataFrame([used, better], columns=["accuracy_gain_low", "accuracy_gain_high"])
    table = table.assign(
        align=["none", "temperature"], chosen="auto", alpha=[0.9, 0.5], accuracy=[0.8, 0.9],
        shipped=[True, False],
    )  # fmt: skip
    found = doubts.better_choice(table)
    assert len(found) == warned
    assert all("α = 0.5 and the alignment temperature its accuracy is 90.0 %" in x for x in found)
    assert doubts.better_choice(table[:0]) == []
