"""Tables whose cells are coloured by their value: accuracy by corruption and severity."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from richkd.base.errors import InputError
from richkd.base.records import read_csv
from richkd.evaluate import plots
from richkd.evaluate.best import Best
from richkd.evaluate.scores import CORRUPTION_COLUMNS
from richkd.evaluate.summary import signed


class Heat(NamedTuple):
    """The values `low` and `high` at the ends of the colour map, and how `text` writes a cell."""

    low: float
    high: float
    colormap: str
    text: Callable[[float], str]


PERCENT = Heat(0, 100, "cividis", "{:.0f}".format)


def corruption_tables(models: Sequence[str], best: Best) -> list[dict[str, Any]]:
    """Coloured tables of accuracy by corruption.

    The first table has all models. The others are by severity: the fused teacher, the best student
    and, if there is a reference, what the best student gains against the reference. Raises
    InputError where a model's file has no rows, or not all corruptions and severities.
    """
    grids = {}
    for model in models:
        path = f"metrics/evaluate/{model}.csv"
        long = read_csv(path, CORRUPTION_COLUMNS, ["corruption", "severity"])
        grid = 100 * long.pivot(index="corruption", columns="severity", values="accuracy")
        grids[model] = grid.loc[long.corruption.unique()]
        first = grids[models[0]]
        same = grid.columns.equals(first.columns) and grids[model].index.equals(first.index)
        if long.empty or not same or grid.isna().any(axis=None):
            raise InputError(
                f"{path} must have the corruptions and severities of {models[0]}.csv beside it, at "
                "least one: run `dvc repro`"
            )
    means = pd.DataFrame({model: grid.mean(axis=1) for model, grid in grids.items()})
    tables = [
        _table("All models, mean over severities, %", means),
        _table("The fused teacher by severity, %", grids["fused"]),
        _table(f"{best.student} by severity, %", grids[best.student]),
    ]
    if best.reference is not None:
        difference = grids[best.student] - grids[best.reference]
        bound = max(difference.abs().to_numpy().max(), 1)
        caption = f"{best.student} minus {best.reference} by severity, points"
        heat = Heat(-bound, bound, "RdBu", lambda value: signed(value, 0))
        tables.append(_table(caption, difference, heat))
    return tables


def _table(caption: str, grid: pd.DataFrame, heat: Heat = PERCENT) -> dict[str, Any]:
    low, high, colormap, text = heat
    rows = [
        (name, [(text(value), plots.shade(value, low, high, colormap)) for value in row])
        for name, row in zip(grid.index, grid.to_numpy(), strict=True)
    ]
    return {"caption": caption, "columns": list(grid.columns), "rows": rows}
