r"""Students of several experiments beside kd, as the Markdown table of docs/results.md.

    python -m richkd preset losses
    dvc exp run --queue -n raw
    dvc exp run --queue -n aligned -S fusion.align=temperature \
        -S fusion.alpha=auto -S fusion.lam=auto
    dvc queue start
    python -m bench.losses raw aligned

The first experiment gives all students. Each further one gives those under the fused teacher, since
the others learn from the same teacher and are the same students.
"""

import argparse
from io import StringIO
from statistics import mean

import dvc.api
import pandas as pd
import yaml

from richkd.evaluate.seeds import paired
from richkd.evaluate.summary import ALONE, COLUMNS, HEADLINE, signed

REFERENCE = "kd"


def table(results: dict[str, pd.DataFrame], teachers: dict[str, dict[str, str]]) -> list[str]:
    """The lines of the table; both arguments by experiment, the first of which has REFERENCE.

    `results` are files metrics/results.csv; `teachers` has the teacher of each variant. A cell is
    the mean over seeds and the paired difference from REFERENCE, bold beyond two standard errors.
    """
    headings = [COLUMNS[metric].heading for metric in HEADLINE]
    lines = ["| student | teacher | " + " | ".join(headings) + " |", "|---" * 7 + "|"]
    first, *_ = results
    reference = _by_metric(results[first], REFERENCE)
    for experiment, found in results.items():
        for name, teacher in {ALONE: "none", **teachers[experiment]}.items():
            if experiment != first and teacher != "fused":
                continue
            values = _by_metric(found, name)
            beside = None if name == REFERENCE else reference
            cells = [_cell(metric, values, beside) for metric in HEADLINE]
            of = f"{teacher}, {experiment}" if teacher == "fused" else teacher
            lines.append(f"| `{name}` | {of} | " + " | ".join(cells) + " |")
    return lines


def _by_metric(results: pd.DataFrame, model: str) -> dict[str, dict[str, float]]:
    """The values of a model: `{metric: {seed: value}}`."""
    values: dict[str, dict[str, float]] = {}
    for _, run in results[results.model == model].iterrows():
        values.setdefault(run["metric"], {})[str(run["seed"])] = run["value"]
    return values


def _cell(
    metric: str, values: dict[str, dict[str, float]], reference: dict[str, dict[str, float]] | None
) -> str:
    column = COLUMNS[metric]
    cell = f"{column.scale * mean(values[metric].values()):.{column.decimals}f}"
    if reference is None:
        return cell
    gain = paired(values[metric], reference[metric])
    text = signed(column.scale * gain.mean, column.decimals)
    if gain.standard_error is not None:
        text += f" ± {column.scale * gain.standard_error:.{column.decimals}f}"
    return f"{cell} ({f'**{text}**' if gain.shown else text})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", help="names of `dvc exp run -n`, or commits")
    results, teachers = {}, {}
    for name in parser.parse_args().experiments:
        results[name] = pd.read_csv(StringIO(dvc.api.read("metrics/results.csv", rev=name)))
        variants = yaml.safe_load(dvc.api.read("params.yaml", rev=name))["distill"]["variants"]
        teachers[name] = {variant: options["teacher"] for variant, options in variants.items()}
    print(*table(results, teachers), sep="\n")


if __name__ == "__main__":
    main()
