"""One experiment's results as a page to read.

Reads the files that the other stages wrote, below the working directory, without torch. The order
of models is teacher, clip, fused, ce, then the variants as in params.yaml. The same files, params
and commit give the same page.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import Field, FiniteFloat
from safetensors import safe_open

from richkd.base.records import read_csv, read_json, reading
from richkd.base.revision import SOURCES, commit
from richkd.data.dataset import load_info, load_split
from richkd.evaluate import doubts, examples, plots
from richkd.evaluate.best import choose_baseline, choose_best
from richkd.evaluate.heat import corruption_tables
from richkd.evaluate.scores import shifted_found, shifted_sets
from richkd.evaluate.seeds import CURVES, Difference, loss_terms
from richkd.evaluate.summary import (
    ALONE,
    ALPHA_COLUMNS,
    CHOICE_COLUMNS,
    COLUMNS,
    TEACHERS,
    Cached,
    Column,
    Fusion,
    Summary,
    Values,
    best_students,
    compare,
    differences,
    findings,
    meaning_of_shown,
    signed,
)
from richkd.model_records import ModelRecord, paths
from richkd.params.students import Variant

LABELS = {"clip": "CLIP"}
EXPLANATIONS = {
    "teacher": "the conventional classifier",
    "clip": "zero-shot from class names",
    "fused": "logits of both, mixed",
    ALONE: "labels alone",
}
IN_SENTENCES = {"teacher": "the teacher", "clip": "CLIP", "fused": "the fused teacher"}
CONTROLS = {"cosines": "plain cosines", "shuffled": "logits shuffled among the other classes"}
QUADRANTS = ("confident_correct", "confident_wrong", "unsure_correct", "unsure_wrong")


# The columns of `metrics/calibrate/<name>.csv`: a row is a bin of a run's reliability diagram.
BIN_COLUMNS = dict.fromkeys(("lo", "hi", "confidence", "accuracy"), FiniteFloat) | {
    "count": Annotated[int, Field(ge=0)],
    "run": int,
    "data": Literal["clean", "corrupted"],
}


# The metrics of the table of choices.
CHOICE_TABLE = {
    "accuracy": Column("accuracy, %", 100, 1, True),
    "nll": Column("NLL, nats", 1, 3, False),
    "nll_tempered": Column("NLL at the best temperature", 1, 3, False),
    "ece": Column("ECE, %", 100, 1, False),
    "confident_wrong": Column("confident and wrong, %", 100, 1, False),
}


class TrainedRecord(ModelRecord):
    """The record of a model that was trained here."""

    seed: int


# --- the page -----------------------------------------------------------------------------------


def render(settings: SimpleNamespace, summary: Summary, params_text: str) -> str:
    """The whole page, self-contained HTML.

    `settings` has `dataset.captioned_images`, `teacher`, `clip`, `student.arch`, `cache.top_k`,
    `fusion.alpha`, `fusion.lam`, `distill.variants`, `distill.seeds`, `corruptions` and
    `calibration.threshold`. `params_text` is shown as it is.
    """
    variants: dict[str, Variant] = settings.distill.variants
    info, test = load_info("data/info.json"), load_split("data/test.safetensors")
    images = {split: count_images(split) for split in ("train", "validation", "test")}
    best = choose_best(summary, variants)  # before the test images are looked at
    baseline = choose_baseline(variants)
    choices = read_csv("metrics/fusion/choices.csv", CHOICE_COLUMNS)
    ready_made = [name for name in ("teacher", "clip") if getattr(settings, name).source != "train"]
    trained = [model for model in summary if model not in (*ready_made, "fused")]
    curves = _curves([model for model in trained if model != "clip"], variants)
    return _template().render(
        settings=settings,
        params_text=params_text,
        info=info,
        images=images,
        best=best,
        alone=ALONE,
        behind=against(compare(summary, best.student, ALONE, "top1"), "top1"),
        mixture=mixture(settings.fusion, choices),
        doubts=[
            *doubts.at_chance({m: x["top1"].by_seed for m, x in summary.items()}, test.labels),
            *doubts.clipped(list(summary), test.labels),
            *doubts.better_choice(choices),
        ],
        explanations=EXPLANATIONS | {name: explain(v) for name, v in variants.items()},
        columns=[COLUMNS[metric] for metric in shown_metrics(summary)],
        results=_results(summary),
        baseline=baseline,
        differences=_differences(summary, baseline),
        meaning_of_bold=meaning_of_shown(len(settings.distill.seeds)),
        findings=findings(summary, best.student, info.name),
        corrupted=corruption_tables(list(summary), best)
        if "corrupted_top1" in summary["teacher"]
        else None,
        shifted=_shifted(summary),
        before=_before_training(choices) if images["validation"] else None,
        quadrants=QUADRANTS,
        trainings=_trainings(curves, summary),
        calibrations=_calibrations(summary),
        teacher=summary["teacher"],
        examples=examples.cards(list(summary), best, test, info.classes),
        provenance=_provenance(trained),
        commit=commit(SOURCES),
        min_bin_images=plots.MIN_BIN_IMAGES,
        dark=plots.DARK,
        other_alpha=0.7 if settings.fusion.alpha != 0.7 else 0.5,
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda x: f"{100 * x:.1f}",
        "label": label,
        "count": count,
        "cell": mean_and_error,
    }
    return environment.get_template("report.html")


def count_images(split: str) -> int:
    """The number of images in a split, from the header of its file."""
    path = f"data/{split}.safetensors"
    with reading(path), safe_open(path, "numpy") as file:
        images: int = file.get_slice("labels").get_shape()[0]
    return images


def shown_metrics(summary: Summary) -> list[str]:
    """The columns of the table of results: the metrics of COLUMNS that this experiment has."""
    return [metric for metric in COLUMNS if metric in summary["teacher"]]


# --- words and numbers --------------------------------------------------------------------------


def label(model: str) -> str:
    """A model's name as the page shows it."""
    return LABELS.get(model, model)


def count(number: int, thing: str, things: str = "") -> str:
    """`1 corruption`, `2 corruptions`, `1,000 severities`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def explain(variant: Variant) -> str:
    """What a student learns from: its loss terms beside cross entropy, and its teacher."""
    terms = []
    for name, term in variant.terms.items():
        switched_on = [option for option, value in term.options.items() if value is True]
        if name != "ce":
            terms.append(f"{name} ({', '.join(switched_on)})" if switched_on else name)
    teacher = IN_SENTENCES[variant.teacher]
    if variant.control:
        teacher += f" with CLIP's {CONTROLS[variant.control]}"
    return f"{', '.join(terms)} under {teacher}"


def mixture(fusion: SimpleNamespace, choices: pd.DataFrame) -> dict[str, Any]:
    """The alpha and lambda of the fused teacher, and for each how it was chosen.

    `fusion` has `alpha` and `lam` as in params.yaml, `choices` is as in CHOICE_COLUMNS. Without
    validation images `choices` is empty, `alpha` and `lam` are numbers, and nothing is aligned.
    """
    alpha, how, align = fusion.alpha, "as given in params.yaml", "none"
    if not choices.empty:
        used = choices[choices.shipped].iloc[0]
        alpha, align = float(used.alpha), used["align"]
        if used.chosen != "given":
            how = "chosen on the validation images"
        if used.chosen == "per class":
            how += ", where each class has an α of its own near it"
    automatic = fusion.lam == "auto"
    return {
        "alpha": f"{alpha:.4g}",
        "how": how,
        "lam": f"{alpha if automatic else fusion.lam:.4g}",
        "lam_how": "which follows α" if automatic else "as given in params.yaml",
        "align": align,
    }


def mean_and_error(values: Values, metric: str) -> str:
    """A mean, and ± its standard error over the seeds where there are several."""
    column = COLUMNS.get(metric, COLUMNS["top1"])
    text = f"{column.scale * values.mean:.{column.decimals}f}"
    if values.sd is not None:
        error = values.sd / len(values.by_seed) ** 0.5
        text += f" ± {column.scale * error:.{column.decimals}f}"
    return text


def against(difference: Difference, metric: str) -> str:
    """A paired difference, and ± its standard error where there are several seeds."""
    column = COLUMNS[metric]
    text = signed(column.scale * difference.mean, column.decimals)
    if difference.standard_error is not None:
        text += f" ± {column.scale * difference.standard_error:.{column.decimals}f}"
    return text


# --- the parts of the page ----------------------------------------------------------------------


def _results(summary: Summary) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row for each model: its cells, and whether each is bold."""
    bold = {metric: best_students(summary, metric) for metric in shown_metrics(summary)}
    return [
        (
            model,
            [(mean_and_error(values[metric], metric), model in bold[metric]) for metric in bold],
        )
        for model, values in summary.items()
    ]


def _differences(summary: Summary, baseline: str) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row for each student but the baseline: its cells, and whether each counts as shown."""
    return [
        (student, [(against(gain, metric), gain.shown) for metric, gain in gains.items()])
        for student, gains in differences(summary, baseline).items()
    ]


def _shifted(summary: Summary) -> dict[str, Any]:
    """Accuracies on the further test sets that were found, and why others were not run."""
    sets = shifted_sets()
    rows = []
    for name in shifted_found():
        cells = [mean_and_error(values[f"shifted_{name}"], "top1") for values in summary.values()]
        rows.append((name, sets[name]["images"], len(sets[name]["classes"]), cells))
    return {
        "models": [label(model) for model in summary],
        "rows": rows,
        "skipped": {name: found["skipped"] for name, found in sets.items() if "skipped" in found},
    }


def _before_training(choices: pd.DataFrame) -> dict[str, Any]:
    """What the validation images say of the teachers."""
    fusion = read_json("metrics/fusion.json", Fusion)
    curve = read_csv("metrics/fusion/alpha.csv", ALPHA_COLUMNS)
    return {
        "teachers": {name: fusion[name] for name in TEACHERS},
        "figure": Markup(plots.fusion(curve, choices)),
        "choices": [_choice(row) for row in choices.to_dict("records")],
        "metrics": list(CHOICE_TABLE.values()),
        "prompts": _prompts(),
    }


def _choice(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the table of choices: each number, and its gain with the interval of the gain."""
    cells = []
    for metric, column in CHOICE_TABLE.items():
        value, *gains = (
            column.scale * row[f"{metric}{end}"] for end in ("", "_gain", "_gain_low", "_gain_high")
        )
        gain, low, high = (signed(x, column.decimals) for x in gains)
        there = "" if isnan(value) else f"{value:.{column.decimals}f}"
        cells.append((there, "" if isnan(gains[0]) else f"{gain} [{low}, {high}]"))
    spread = "" if isnan(row["alpha_low"]) else f"[{row['alpha_low']:.2f}, {row['alpha_high']:.2f}]"
    return {**row, "cells": cells, "spread": spread}


def _prompts() -> dict[str, Any]:
    cache = read_json("metrics/cache/clip.json", Cached)
    single = dict(cache["single_prompt_accuracy"])
    mean, together = single.pop("mean"), cache["validation_accuracy"]
    gain = signed(100 * (together - mean))
    return {"single": single, "mean": mean, "together": together, "gain": gain}


def _curves(models: Sequence[str], variants: Mapping[str, Variant]) -> dict[str, pd.DataFrame]:
    """For each trained classifier its training curves: CURVES, and a column for each loss term."""
    tables = {}
    for model in models:
        terms = list(variants[model].terms) if model in variants else ["ce"]
        columns = CURVES | dict.fromkeys(terms, float)
        table = read_csv(f"metrics/curves/{model}.csv", columns, ["epoch", "seed"])
        tables[model] = table[list(columns)]
    return tables


def _trainings(
    curves: Mapping[str, pd.DataFrame], summary: Summary
) -> list[tuple[str, Markup, str]]:
    """For each model its figure, and its last validation accuracy if there is one."""
    color = plots.colors(summary)
    # Over all models, so that a loss has one colour in every figure.
    term_color = plots.colors(term for table in curves.values() for term in loss_terms(table))
    figures = []
    for model, table in curves.items():
        colors = {term: term_color[term] for term in loss_terms(table)}
        last = ""
        if "validation_accuracy" in summary[model]:
            last = mean_and_error(summary[model]["validation_accuracy"], "top1")
        figures.append((model, Markup(plots.training(table, color[model], colors)), last))
    return figures


def _calibrations(summary: Summary) -> list[tuple[str, Markup, dict[str, Values]]]:
    """For each model its reliability diagram and its numbers."""
    color = plots.colors(summary)
    figures = []
    for model, values in summary.items():
        curves = read_csv(f"metrics/calibrate/{model}.csv", BIN_COLUMNS)
        figures.append((model, Markup(plots.reliability(curves, color[model])), values))
    return figures


def _provenance(models: Sequence[str]) -> dict[str, Any]:
    """Where each model was trained, with which seeds, and the versions that the records name."""
    rows, versions = [], []
    for model in models:
        records = [read_json(f"{path}.json", TrainedRecord) for path in paths(f"models/{model}")]
        machines = {f"{x['device']}, {count(x['threads'], 'thread')}" for x in records}
        seeds = ", ".join(str(seed) for seed in sorted(record["seed"] for record in records))
        rows.append((model, seeds, "; ".join(sorted(machines))))
        versions += [
            ", ".join(f"{package} {version}" for package, version in record["versions"].items())
            for record in records
        ]
    return {"rows": rows, "versions": list(dict.fromkeys(versions))}
