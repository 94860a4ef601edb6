"""What each way to fuse both teachers gains on the validation images, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

from richkd.base.errors import InputError
from richkd.evaluate import calibration
from richkd.evaluate.summary import CHOICE_METRICS
from richkd.params import Calibration, Fusion
from richkd.teachers.align import ALIGNMENTS, Validation, align
from richkd.teachers.choose import (
    bootstrap_counts,
    choose_with_spread,
    class_alphas,
    held_out_gain,
)
from richkd.teachers.fusion import Recipe, semantic_closeness

PAPER_ALPHA = 0.7  # the alpha of the reference where `fusion.alpha` is auto
HEADINGS = {
    "accuracy": "accuracy, %",
    "nll_tempered": "NLL at best T",
    "nll": "NLL",
    "ece": "ECE, %",
    "confident_wrong": "confident, wrong, %",
}
Row = dict[str, Any]


class Choice(NamedTuple):
    """A way to fuse: the alignment, how alpha is chosen, and the recipe that follows.

    `chosen` is `given`, `auto` or `per class`. For `auto`, `low` and `high` are the middle 95 % of
    the alphas on bootstrap draws.
    """

    align: str
    chosen: str
    recipe: Recipe
    low: float | None = None
    high: float | None = None


class Diagnosis(NamedTuple):
    """The recipe that `params.yaml` asks for, and what is written and printed about it.

    `summary` is the content of `metrics/fusion.json`, `tables` has the rows of the tables in
    `metrics/fusion` by their names, and `lines` are printed.
    """

    recipe: Recipe
    summary: dict[str, dict[str, float]]
    tables: dict[str, list[Row]]
    lines: list[str]


def diagnose(
    settings: SimpleNamespace,
    tables: dict[str, str],
    validation: Validation,
    classes: np.ndarray,
) -> Diagnosis:
    """Choose the fused teacher as `settings.fusion` says, and measure all possible choices.

    `settings` has `fusion` and `calibration`, `tables` is as in `Recipe`, and `classes` are the
    unit embeddings of the class names, (C, D). Raises InputError where the choice that
    `settings.fusion` asks for is not possible.
    """
    found, lines = _choices(settings.fusion, tables, validation)
    shipped = _shipped(settings.fusion, found)
    choices = measure_choices(found, shipped, validation, settings.calibration)
    curve = measure_curve(found, settings.fusion.grid, validation, settings.calibration.bins)
    models, answers = measure_models(shipped.recipe, validation, classes, settings.calibration)
    closeness = [{"model": name, **figures} for name, figures in models.items()]
    rows = {"alpha": curve, "choices": choices, "answers": answers, "closeness": closeness}
    return Diagnosis(shipped.recipe, models, rows, [*lines, short_table(choices)])


# --- the choices --------------------------------------------------------------------------------


def _choices(
    settings: Fusion, tables: dict[str, str], validation: Validation
) -> tuple[list[Choice], list[str]]:
    """All possible choices, and lines on those that are not possible and on an alpha a class.

    The first choice is the reference: align none, and the alpha of `settings`, or PAPER_ALPHA where
    `settings` has auto. Raises InputError where the choice of `settings` is not possible.
    """
    alpha = PAPER_ALPHA if settings.alpha == "auto" else settings.alpha
    plain = Recipe(alpha, alpha, {"teacher": 1.0, "clip": 1.0}, tables)
    found, notes = [], []
    for alignment in ALIGNMENTS:
        try:
            given = align(plain, alignment, validation)
        except InputError as error:
            if alignment == settings.align:
                raise
            notes.append(str(error))
            continue
        found.append(Choice(alignment, "given", given))
        try:
            chosen, note = _chosen(alignment, given, validation)
        except InputError as error:
            if alignment == settings.align and settings.alpha == "auto":
                raise
            notes.append(str(error))
            continue
        found += chosen
        notes += [note] * (alignment == settings.align)
    return found, notes


def _chosen(alignment: str, given: Recipe, validation: Validation) -> tuple[list[Choice], str]:
    """The choice `auto`; also `per class` where that wins; and a line on whether it wins."""
    scaled = validation.scaled(given)
    alpha, low, high = choose_with_spread(scaled)
    auto = Choice(alignment, "auto", given._replace(alpha=alpha), low, high)
    temperature = calibration.fit_temperature(validation.mixed(auto.recipe), validation.labels)
    gain = held_out_gain(scaled)
    if temperature is None or gain is None:
        return [auto], "an alpha a class: too few wrong answers on the validation images to fit it"
    alphas = class_alphas(scaled, alpha, temperature)
    wins = alphas is not None and gain[0] < -2 * gain[1]
    note = (
        f"an alpha a class changes the NLL of images that it was not fitted on by {gain[0]:+.4f} ± "
        f"{gain[1]:.4f} (standard error): {'it wins' if wins else 'the common alpha is kept'}"
    )
    if alphas is None or not wins:
        return [auto], note
    recipe = auto.recipe._replace(class_alphas=tuple(alphas.tolist()))
    return [auto, Choice(alignment, "per class", recipe)], note


def _shipped(settings: Fusion, found: Sequence[Choice]) -> Choice:
    """The choice that `settings` asks for; `auto` where an alpha for each class does not win."""
    wanted = ["given"] if settings.alpha != "auto" else ["auto"]
    wanted += ["per class"] * settings.per_class
    choice = [x for x in found if x.align == settings.align and x.chosen in wanted][-1]
    lam = choice.recipe.alpha if settings.lam == "auto" else settings.lam
    return choice._replace(recipe=choice.recipe._replace(lam=lam))


# --- the figures of the choices -----------------------------------------------------------------


def measure_choices(
    found: Sequence[Choice], chosen: Choice, validation: Validation, settings: Calibration
) -> list[Row]:
    """The rows of `metrics/fusion/choices.csv`: `richkd.evaluate.summary.CHOICE_COLUMNS`.

    Bootstrap draws vary the images alone: no choice is fitted again on a draw.
    """
    images = len(validation.labels)
    counts = np.vstack([np.ones(images), bootstrap_counts(images)])  # row 0: each image once
    rows: list[Row] = []
    reference: dict[str, np.ndarray] = {}
    for choice in found:
        mixed = validation.mixed(choice.recipe)
        temperature = calibration.fit_temperature(mixed, validation.labels)
        per_image = _per_image(mixed, validation.labels, temperature, settings)
        figures = {key: counts @ values / images for key, values in per_image.items()}
        figures["ece"] = np.abs(figures["ece"]).sum(1)  # over the bins
        reference = reference or figures
        row: Row = {
            "align": choice.align,
            "chosen": choice.chosen,
            "alpha": choice.recipe.alpha,
            "alpha_low": choice.low,
            "alpha_high": choice.high,
            "temperature": temperature,
        }
        for metric in CHOICE_METRICS:
            gain = figures[metric] - reference[metric]
            ends = np.quantile(gain[1:], [0.025, 0.975])
            row |= {metric: figures[metric][0], f"{metric}_gain": gain[0]}
            row |= {f"{metric}_gain_low": ends[0], f"{metric}_gain_high": ends[1]}
        rows.append(row | {"shipped": choice[:2] == chosen[:2]})
    return rows


def _per_image(
    mixed: np.ndarray, labels: np.ndarray, temperature: float | None, settings: Calibration
) -> dict[str, np.ndarray]:
    """What each image adds to each of CHOICE_METRICS: (N,), and for ece (N, bins)."""
    images = np.arange(len(labels))
    log_probabilities = log_softmax(mixed, axis=1)
    probabilities = np.exp(log_probabilities)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = calibration.reliability_curve(probabilities, labels, settings.bins)["hi"]
    gaps = np.zeros((len(labels), len(bins)))  # an image's gap stands in the column of its bin
    gaps[images, np.searchsorted(bins, confidence)] = confidence - right
    tempered = np.full(len(labels), np.nan)
    if temperature is not None:
        tempered = -log_softmax(mixed / temperature, axis=1)[images, labels]
    return {
        "accuracy": right.astype(float),
        "nll": -log_probabilities[images, labels],
        "nll_tempered": tempered,
        "ece": gaps,
        "confident_wrong": ((confidence >= settings.threshold) & ~right).astype(float),
    }


def measure_curve(
    found: Sequence[Choice], grid: Sequence[float], validation: Validation, bins: int
) -> list[Row]:
    """The rows of `metrics/fusion/alpha.csv`: for each alignment, the alphas of the grid."""
    rows, labels = [], validation.labels
    for choice in found:
        for alpha in grid if choice.chosen == "given" else ():
            mixed = validation.mixed(choice.recipe._replace(alpha=alpha))
            row: Row = {"align": choice.align, "alpha": alpha}
            row |= _scores(softmax(mixed, axis=1), labels, bins)
            if temperature := calibration.fit_temperature(mixed, labels):
                at_best = softmax(mixed / temperature, axis=1)
                row["nll_tempered"] = calibration.negative_log_likelihood(at_best, labels)
            rows.append(row)
    return rows


def _scores(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> dict[str, float]:
    return {
        "accuracy": float(np.mean(probabilities.argmax(1) == labels)),
        "nll": calibration.negative_log_likelihood(probabilities, labels),
        "ece": calibration.expected_calibration_error(probabilities, labels, bins),
    }


def measure_models(
    recipe: Recipe, validation: Validation, classes: np.ndarray, settings: Calibration
) -> tuple[dict[str, dict[str, float]], list[Row]]:
    """Figures of the teacher, CLIP and the fused teacher; the rows of `answers.csv`."""
    labels, figures, answers = validation.labels, {}, []
    for name, mixed in (
        ("teacher", validation.teacher.astype(float)),
        ("clip", validation.clip.astype(float)),
        ("fused", validation.mixed(recipe)),
    ):
        probabilities = softmax(mixed, axis=1)
        quadrants = calibration.confidence_quadrants(probabilities, labels, settings.threshold)
        figures[name] = {
            **_scores(probabilities, labels, settings.bins),
            **quadrants,
            "semantic_closeness": float(semantic_closeness(probabilities, labels, classes).mean()),
        }
        answers += [{"model": name, "answer": key, "share": x} for key, x in quadrants.items()]
    return figures, answers


def short_table(rows: Sequence[Row]) -> str:
    """The rows of `measure_choices` as text; two metrics also with their gain's interval."""
    lines = []
    for row in rows:
        alpha = f"{row['chosen']} {row['alpha']:.3g}"
        if row["alpha_low"] is not None:
            alpha += f" ({row['alpha_low']:.2f} to {row['alpha_high']:.2f})"
        line = {"shipped": "->" * row["shipped"], "align": row["align"], "alpha": alpha}
        for metric, heading in HEADINGS.items():
            scale, digits = (1, 3) if metric.startswith("nll") else (100, 1)
            line[heading] = f"{scale * row[metric]:.{digits}f}"
            if metric in ("accuracy", "nll_tempered") and row is not rows[0]:
                ends = ("_gain", "_gain_low", "_gain_high")
                gains = (f"{scale * row[f'{metric}{end}']:+.{digits}f}" for end in ends)
                line[heading] += " ({}: {} to {})".format(*gains)
        lines.append(line)
    about = "95 % intervals of alpha, and of the gain over the first row, in brackets"
    return f"on the validation images ({about}):\n{pd.DataFrame(lines).to_string(index=False)}"
