"""What a CRD step takes as the bank, the batch, the classes and the negatives grow.

Each size is varied alone around the paper's setting. A step is drawing, loss, gradient and update
of the banks, once with a set of negatives for each sample and once with one set for the batch.
Extra memory is what the step takes at its peak beside the banks. The exponents are fitted to the
upper half of a range: 0 where nothing grows, 1 where time or memory grow in proportion.
Run it: `python -m bench.scaling`.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench.common import (
    CIFAR100,
    MIB,
    PAGE_MIB,
    Case,
    Rows,
    Sizes,
    alternate,
    folder,
    peak_memory,
    report,
    spread,
)
from bench.crd import Problem
from richkd.base.files import replacing
from richkd.engine import pick_device
from richkd.evaluate.plots import STYLE

RANGES = {
    "samples": [12_500, 25_000, 50_000, 100_000, 200_000],
    "batch_size": [8, 16, 32, 64, 128, 256],
    "classes": [2, 10, 100, 1_000, 10_000],
    "negatives": [1_024, 4_096, 16_384, 32_768, 65_536],
}
SHARED = ", shared"  # ends the name of a row with one set of negatives for the batch
LABELS = {
    "samples": "samples in the bank",
    "batch_size": "batch",
    "classes": "classes",
    "negatives": "negatives a sample",
}


def main(
    *,
    sizes: Sizes = CIFAR100,
    ranges: Mapping[str, Sequence[int]] = RANGES,
    repeats: int = 7,
) -> None:
    device = pick_device()
    rows: dict[str, dict[str, float]] = {}
    for name, values in ranges.items():
        rows |= vary(name, values, sizes, repeats, device)
    plot(ranges, rows)
    report("scaling", rows, base=sizes._asdict(), repeats=repeats)


def vary(
    name: str, values: Sequence[int], sizes: Sizes, repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """A row for each of `values` of the size `name`: each sample's own negatives, then shared."""
    problems = {
        f"{name} {x}{SHARED * shared}": Problem(sizes._replace(**{name: x}), device, shared=shared)
        for shared in (False, True)
        for x in values
    }
    cases = {key: stepper(problem) for key, problem in problems.items()}
    times = alternate(cases, repeats)
    rows = {}
    for key, problem in problems.items():
        memory = problem.memory
        rows[key] = {
            **spread("step_s", times[key]),
            "extra_mib": peak_memory(cases[key]),
            "banks_mib": (memory.student_bank.nbytes + memory.teacher_bank.nbytes) / MIB,
        }
    for way in ("", SHARED):
        for column in ("step_s", "extra_mib"):
            # A step may take no memory that can be seen. Then it counts as one page.
            least = PAGE_MIB if column == "extra_mib" else 0
            measured = [max(rows[f"{name} {x}{way}"][column], least) for x in values]
            rows[f"{name} {values[-1]}{way}"][f"{column}_exponent"] = exponent(values, measured)
    return rows


def stepper(problem: Problem) -> Case:
    return lambda: problem.step(problem.memory, problem.draw())


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """e of y ~ x^e, by least squares on logarithms, over the upper half of the points."""
    upper = slice(len(x) // 2, None)
    log_x, log_y = np.log(x[upper]), np.log(y[upper])
    log_x = log_x - log_x.mean()
    return float(log_x @ log_y / (log_x @ log_x))


@matplotlib.rc_context(STYLE | {"axes.titlesize": 8})
def plot(ranges: Mapping[str, Sequence[int]], rows: Rows) -> None:
    """`scaling.png` beside the numbers: above the time of a step, below its extra memory."""
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(ranges), sharex="col", sharey="row", squeeze=False)
    for (top, bottom), (name, values) in zip(grid.T, ranges.items()):
        for way, colour, label in (("", "#0072b2", "own"), (SHARED, "#d55e00", "shared")):
            measured = [rows[f"{name} {x}{way}"] for x in values]
            time, low, high = (
                np.array([1000 * row[key] for row in measured])
                for key in ("step_s", "step_s_min", "step_s_max")
            )
            memory = [max(row["extra_mib"], PAGE_MIB) for row in measured]
            above, below = (
                f"{label}, exponent {measured[-1][key]:.2f}"
                for key in ("step_s_exponent", "extra_mib_exponent")
            )
            bars = time - low, high - time
            top.errorbar(values, time, bars, fmt="o-", color=colour, capsize=2, label=above)
            bottom.plot(values, memory, "o-", color=colour, label=below)
        for axes in (top, bottom):
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # a short axis has no room for them
            axes.legend(fontsize=6)
        bottom.set_xlabel(LABELS[name])
    grid[0, 0].set_ylabel("a step, ms")
    grid[1, 0].set_ylabel("extra memory, MiB")
    with replacing(f"{folder()}/scaling.png") as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    print(f"{folder()}/scaling.png")


if __name__ == "__main__":
    main()
