"""The report's figures: SVG for the page, one PNG for the README.

The same input gives the same bytes: no dates, and ids hashed with a fixed salt. Figures are made
without pyplot, so they need no display and leave no state behind.

An SVG is an element of the page. Its text stays text, and each colour of `DARK` becomes a variable
of the page, so that one drawing is legible both on the light page and on the dark one.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

# Models and loss terms of these names are in every experiment. Colours of Okabe and Ito's palette,
# told apart with every common colour blindness, and a grey.
FIXED_COLORS = {"teacher": "#0072b2", "clip": "#e69f00", "fused": "#009e73", "ce": "#7a7a7a"}
# All other names take these colours in their order. First comes the rest of Okabe and Ito's palette
# without its pale yellow, then Paul Tol's palette "muted" without its cyan, which is too close to
# the sky blue.
COLOR_CYCLE = (
    "#000000", "#56b4e9", "#cc79a7", "#d55e00",
    "#332288", "#999933", "#882255", "#ddcc77", "#117733", "#aa4499", "#44aa99", "#cc6677",
)  # fmt: skip
# The lines of the fused teacher, by the alignment of its parts.
ALIGN_COLORS = {"none": "#009e73", "temperature": "#d55e00", "standardize": "#332288"}
# Colours that cannot be seen on the dark page, and the colours that replace them there.
DARK = {
    "#000000": "#e8e8e8", "#ffffff": "#16181b", "#dddddd": "#3a3f45",
    "#332288": "#8a7cf0", "#882255": "#d8487f", "#117733": "#5cb85c",
}  # fmt: skip
MIN_BIN_IMAGES = 10  # bins of a reliability diagram with fewer images are not drawn
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "richkd",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
}
# Above the axes, where no line crosses it.
LEGEND: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (-0.02, 1.02), "borderaxespad": 0, "ncols": 4,
    "handlelength": 1, "columnspacing": 1,
}  # fmt: skip


def colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each model or loss term: fixed, or from the cycle in the order of `names`.

    More than twelve names without a fixed colour begin the cycle again.
    """
    others = (name for name in dict.fromkeys(names) if name not in FIXED_COLORS)
    return FIXED_COLORS | dict(zip(others, cycle(COLOR_CYCLE), strict=False))


@matplotlib.rc_context(STYLE)
def fusion(curve: pd.DataFrame, choices: pd.DataFrame) -> str:
    """SVG of the fused teacher's accuracy and NLL on validation images, over alpha.

    `curve` has the columns ALPHA_COLUMNS of `richkd.evaluate.summary`, `choices` CHOICE_COLUMNS.
    """
    height = 4.4
    figure = Figure(figsize=(3.5, height))
    top, bottom = figure.subplots(2, sharex=True)
    figure.subplots_adjust(
        left=0.17, right=0.97, top=1 - 0.55 / height, bottom=0.43 / height, hspace=0.12
    )
    _over_alpha(top, curve, choices, "accuracy", 100)
    _over_alpha(bottom, curve, choices, "nll_tempered")
    top.set(ylabel="accuracy, %", xlabel="")
    bottom.set(ylabel="NLL, nats")
    top.legend(**LEGEND | {"ncols": 3})
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def training(curves: pd.DataFrame, color: str, term_colors: Mapping[str, str]) -> str:
    """SVG of the loss terms over epochs; above them the validation accuracy, if there is any.

    A thin line is a seed, the thick one their mean. `color` is the validation accuracy's,
    `term_colors` has the columns of `curves` that are loss terms, each with its colour.
    """
    # Validation runs every few epochs; the rows of other epochs have no value.
    validation = curves.dropna(subset="validation_accuracy")
    height = 2.3 if validation.empty else 3.9
    figure = Figure(figsize=(3.5, height))
    *top, bottom = figure.subplots(1 if validation.empty else 2, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(
        left=0.17,
        right=0.97,
        top=1 - (0.3 if validation.empty else 0.1) / height,
        bottom=0.43 / height,
        hspace=0.25,
    )
    for axes in top:
        _seeds_and_mean(axes, validation, "validation_accuracy", color, 100)
        axes.set(ylim=(0, 101), ylabel="validation accuracy, %")
    for term, term_color in term_colors.items():
        _seeds_and_mean(bottom, curves, term, term_color)
    bottom.set(yscale="log", ylabel="loss terms", xlabel="epoch")
    bottom.legend(**LEGEND)
    return _svg(figure)


@matplotlib.rc_context(STYLE | {"font.size": 10})  # large, since the page shows it small
def reliability(curves: pd.DataFrame, color: str) -> str:
    """SVG of accuracy against confidence: solid for clean images, dashed for corrupted ones.

    The runs' bins are pooled. Bins with fewer than MIN_BIN_IMAGES images are left out as noise.
    """
    figure, axes = _figure(2.4, 2.4)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    looks = {"clean": ("-", color), "corrupted": ("--", "white")}
    for data, (line, fill) in looks.items():
        bins = pool_bins(curves[curves.data == data])
        bins = bins[bins["count"] >= MIN_BIN_IMAGES]
        axes.plot(bins.confidence, bins.accuracy, line, color=color, linewidth=1.2)
        sizes = 4 + 60 * bins["count"] / bins["count"].sum()
        axes.scatter(bins.confidence, bins.accuracy, sizes, fill, edgecolors=color, zorder=3)
    ticks = [0, 0.5, 1]
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks)
    axes.set(xlabel="confidence", ylabel="accuracy")
    return _svg(figure)


def pool_bins(curves: pd.DataFrame) -> pd.DataFrame:
    """Reliability curves of several runs as one: means weighted by the bins' counts."""
    weighted = curves[["confidence", "accuracy"]].mul(curves["count"], axis=0)
    bins = weighted.assign(lo=curves.lo, count=curves["count"]).groupby("lo").sum()
    return bins[["confidence", "accuracy"]].div(bins["count"], axis=0).join(bins["count"])


@matplotlib.rc_context(STYLE | {"font.size": 9, "axes.titlesize": 10})
def overview(
    curve: pd.DataFrame,
    choices: pd.DataFrame,
    runs: Mapping[str, Sequence[float]],
    labels: Mapping[str, str],
) -> bytes:
    """PNG, 1600 x 600: the fused teacher's validation accuracy over alpha, and test accuracies.

    `curve` and `choices` as in `fusion`; `runs` has each model's test accuracies, one for each
    seed, and `labels` its name. Where `curve` is empty, the picture has the test accuracies alone
    and is 800 x 600. With more than ten models it is higher.
    """
    width, height = 4 if curve.empty else 8, max(3, 0.3 * len(runs))
    figure = Figure(figsize=(width, height), dpi=200)
    *left, right = figure.subplots(1, 1 if curve.empty else 2, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.12 / width, top=1 - 0.3 / height, bottom=0.48 / height,
        wspace=0.28,
    )  # fmt: skip
    for axes in left:
        _over_alpha(axes, curve, choices, "accuracy", 100)
        axes.set(ylabel="fused teacher, validation accuracy, %")
        axes.legend(**LEGEND)
    _test_accuracies(right, runs, labels)
    return _save(figure, "png", {"Software": None})


def shade(value: float, low: float, high: float, colormap: str) -> str:
    """CSS of a table cell: a background for `value` in [low, high], and a legible text colour."""
    position = 0.5 if high == low else (value - low) / (high - low)
    color = matplotlib.colormaps[colormap](position)
    linear = [(x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4) for x in color[:3]]
    luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
    # WCAG's contrast with black equals that with white at this luminance.
    text = "#000" if luminance > 0.179 else "#fff"
    return f"background:{to_hex(color)};color:{text}"


def _over_alpha(
    axes: Axes, curve: pd.DataFrame, choices: pd.DataFrame, column: str, scale: float = 1
) -> None:
    """A line for each alignment; a diamond at its `auto`, with a bar; a ring at the one in use."""
    for align, line in curve.sort_values("alpha").groupby("align", sort=False):
        color = ALIGN_COLORS[str(align)]
        axes.plot(line.alpha, scale * line[column], ".-", color=color, linewidth=1.2, label=align)
    for align, auto in choices[choices.chosen == "auto"].groupby("align"):
        spread = np.stack([auto.alpha - auto.alpha_low, auto.alpha_high - auto.alpha])
        axes.errorbar(
            auto.alpha, scale * auto[column], xerr=spread, fmt="D", markersize=4,
            color=ALIGN_COLORS[str(align)], capsize=3, elinewidth=1.2, zorder=3,
        )  # fmt: skip
    used = choices[choices.shipped]
    axes.plot(
        used.alpha, scale * used[column], "o", color="#000000", markerfacecolor="none",
        markersize=10, label="in use", zorder=4,
    )  # fmt: skip
    axes.set(xlim=(-0.03, 1.03), xlabel="α (0 is CLIP alone, 1 the teacher alone)")
    axes.margins(y=0.12)


def _test_accuracies(
    axes: Axes, runs: Mapping[str, Sequence[float]], labels: Mapping[str, str]
) -> None:
    """A row for each model: its mean, a bar of one standard error, a tick for each seed."""
    color = colors(runs)
    for row, (model, accuracies) in enumerate(runs.items()):
        percents = 100 * np.array(accuracies)
        several = len(percents) > 1
        error = percents.std(ddof=1) / len(percents) ** 0.5 if several else None
        axes.errorbar(
            percents.mean(), row, xerr=error, fmt="o", color=color[model], capsize=3, markersize=6
        )
        if several:
            axes.plot(percents, [row + 0.25] * len(percents), "|", color=color[model], markersize=5)
    axes.set_yticks(range(len(runs)), [labels[model] for model in runs])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    several = any(len(accuracies) > 1 for accuracies in runs.values())
    title = "Test accuracy" + (", mean ± standard error" if several else "")
    axes.set(xlabel="%", title=title)


def _seeds_and_mean(
    axes: Axes, curves: pd.DataFrame, column: str, color: str, scale: float = 1
) -> None:
    table = scale * curves.pivot(index="epoch", columns="seed", values=column)
    if table.shape[1] > 1:
        axes.plot(table.index, table, color=color, linewidth=0.6, alpha=0.5)
    axes.plot(table.index, table.mean(axis=1), color=color, linewidth=1.8, label=column)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One pair of axes; margins in inches, so that labels fit at every size."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.1 / width, top=1 - 0.1 / height, bottom=0.5 / height
    )
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, without a background, for a page that sets DARK's colours."""
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    svg = _save(figure, "svg", metadata, transparent=True).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub("|".join(DARK), lambda color: f"var(--{color[0][1:]})", svg)
    # The page has several SVGs, and no id may occur twice.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)


def _save(figure: Figure, kind: str, metadata: dict[str, None], **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()
