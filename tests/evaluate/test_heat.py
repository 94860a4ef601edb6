"""Tables of accuracy by corruption and severity."""

from pathlib import Path

import pandas as pd
import pytest

from richkd.base.errors import InputError
from richkd.evaluate.best import Best
from richkd.evaluate.heat import corruption_tables

BEST = Best("L", "kd", "")


def write(**changes: pd.DataFrame) -> list[str]:
    """Files of four models with two corruptions at two severities; returns the models' names."""
    rows = [("fog", 1, 0.9), ("fog", 3, 0.5), ("snow", 1, 0.8), ("snow", 3, 0.4)]
    table = pd.DataFrame(rows, columns=["corruption", "severity", "accuracy"])
    models = ["teacher", "fused", "kd", "L"]
    Path("metrics/evaluate").mkdir(parents=True, exist_ok=True)
    for model in models:
        changes.get(model, table).to_csv(f"metrics/evaluate/{model}.csv", index=False)
    return models


def test_each_cell_is_the_accuracy_of_one_set(here: Path) -> None:
    means, _, best, difference = corruption_tables(write(), BEST)
    cells = [
        [[text for text, _ in cells] for _, cells in table["rows"]]
        for table in (means, best, difference)
    ]
    assert cells == [[["70"] * 4, ["60"] * 4], [["90", "50"], ["80", "40"]], [["+0"] * 2] * 2]


@pytest.mark.parametrize("left", [[], [0, 1, 2], [0, 1], [0, 2]])
@pytest.mark.parametrize("model", ["teacher", "L"])
def test_a_file_that_lacks_sets_is_refused(here: Path, model: str, left: list[int]) -> None:
    write()
    table = pd.read_csv(f"metrics/evaluate/{model}.csv").iloc[left]
    with pytest.raises(InputError, match=r"^metrics/evaluate/\w+.csv must have the corruptions"):
        corruption_tables(write(**{model: table}), BEST)
