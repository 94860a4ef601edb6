"""One experiment's results as a page to read.

Reads what the other stages wrote, below the working directory, without torch. Models come in the
order teacher, clip, fused, ce, then the variants as in params.yaml.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image
from pydantic import Field, FiniteFloat
from safetensors import safe_open
from scipy.special import softmax

from richkd.base.records import read_csv, read_json, reading
from richkd.data.dataset import Manifest, Split, load_info, load_split
from richkd.data.pictures import picture
from richkd.evaluate import plots
from richkd.evaluate.scores import CORRUPTION_COLUMNS, read_logits, shifted_found, shifted_sets
from richkd.evaluate.seeds import CURVES
from richkd.evaluate.summary import (
    ALONE,
    ALPHA_COLUMNS,
    COLUMNS,
    TEACHERS,
    Cached,
    Fusion,
    Shown,
    Summary,
    choose_shown,
    findings,
    mean_and_sd,
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
QUADRANTS = ("confident_correct", "confident_wrong", "unsure_correct", "unsure_wrong")


# The columns of `metrics/calibrate/<name>.csv`: a row is a bin of a run's reliability diagram.
BIN_COLUMNS = dict.fromkeys(("lo", "hi", "confidence", "accuracy"), FiniteFloat) | {
    "count": Annotated[int, Field(ge=0)],
    "run": int,
    "data": Literal["clean", "corrupted"],
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
    alpha = settings.fusion.alpha
    info, test = load_info("data/info.json"), load_split("data/test.safetensors")
    images = {split: count_images(split) for split in ("train", "validation", "test")}
    shown = choose_shown(summary, variants)  # before the test images are looked at
    ready_made = [name for name in ("teacher", "clip") if getattr(settings, name).source != "train"]
    trained = [model for model in summary if model not in (*ready_made, "fused")]
    return _template().render(
        settings=settings,
        params_text=params_text,
        info=info,
        images=images,
        shown=shown,
        explanations=EXPLANATIONS | {name: explain(v) for name, v in variants.items()},
        columns=[COLUMNS[metric] for metric in shown_metrics(summary)],
        results=_results(summary),
        findings=findings(summary, shown.reference, info.name),
        corrupted=_corrupted(list(summary), shown)
        if "corrupted_top1" in summary["teacher"]
        else None,
        shifted=_shifted(summary),
        before=_before_training(alpha) if images["validation"] else None,
        quadrants=QUADRANTS,
        trainings=_trainings([m for m in trained if m != "clip"], summary, variants),
        calibrations=_calibrations(summary),
        teacher=summary["teacher"],
        examples=_examples(list(summary), shown, test, info.classes),
        provenance=_provenance(trained),
        min_bin_images=plots.MIN_BIN_IMAGES,
        other_alpha=0.7 if alpha != 0.7 else 0.5,
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda x: f"{100 * x:.1f}", "label": label}
    return environment.get_template("report.html")


def count_images(split: str) -> int:
    """Images in a split, from its file's header."""
    path = f"data/{split}.safetensors"
    with reading(path), safe_open(path, "numpy") as file:
        count: int = file.get_slice("labels").get_shape()[0]
    return count


def shown_metrics(summary: Summary) -> list[str]:
    """The metrics of the table of results that this experiment has."""
    return [metric for metric in COLUMNS if metric in summary["teacher"]]


def label(model: str) -> str:
    """A model's name as the page shows it."""
    return LABELS.get(model, model)


def explain(variant: Variant) -> str:
    """What a student learns from: its loss terms beside cross entropy, and its teacher."""
    terms = []
    for name, term in variant.terms.items():
        switched_on = [option for option, value in term.options.items() if value is True]
        if name != "ce":
            terms.append(f"{name} ({', '.join(switched_on)})" if switched_on else name)
    return f"{', '.join(terms)} under {IN_SENTENCES[variant.teacher]}"


def _results(summary: Summary) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row a model: its cells, and whether each is the best student's."""
    students = [model for model in summary if model not in TEACHERS]
    best = {}
    for metric in shown_metrics(summary):
        values = [summary[student][metric] for student in students]
        best[metric] = max(values) if COLUMNS[metric].more_is_better else min(values)
    return [
        (
            model,
            [
                (mean_and_sd(values, metric), model in students and values[metric] == best[metric])
                for metric in best
            ],
        )
        for model, values in summary.items()
    ]


# --- its parts ----------------------------------------------------------------------------------


class Heat(NamedTuple):
    """How the cells of a table are coloured, between which ends, and written."""

    low: float
    high: float
    colormap: str
    text: Callable[[float], str]


PERCENT = Heat(0, 100, "cividis", "{:.0f}".format)


def _corrupted(models: Sequence[str], shown: Shown) -> list[dict[str, Any]]:
    """Coloured tables of accuracy by corruption.

    First all models, then by severity the fused teacher, the student shown, and what the student
    shown gains against the reference if there is one.
    """
    grids = {}
    for model in models:
        long = read_csv(
            f"metrics/evaluate/{model}.csv", CORRUPTION_COLUMNS, ["corruption", "severity"]
        )
        grid = 100 * long.pivot(index="corruption", columns="severity", values="accuracy")
        grids[model] = grid.loc[long.corruption.unique()]
    means = pd.DataFrame({model: grid.mean(axis=1) for model, grid in grids.items()})
    tables = [
        _heat("All models, mean over severities, %", means.rename(columns=label)),
        _heat("The fused teacher by severity, %", grids["fused"]),
        _heat(f"{shown.student} by severity, %", grids[shown.student]),
    ]
    if shown.reference is not None:
        difference = grids[shown.student] - grids[shown.reference]
        bound = max(difference.abs().to_numpy().max(), 1)
        caption = f"{shown.student} minus {shown.reference} by severity, points"
        heat = Heat(-bound, bound, "RdBu", lambda value: signed(value, 0))
        tables.append(_heat(caption, difference, heat))
    return tables


def _heat(caption: str, grid: pd.DataFrame, heat: Heat = PERCENT) -> dict[str, Any]:
    low, high, colormap, text = heat
    rows = [
        (name, [(text(value), plots.shade(value, low, high, colormap)) for value in row])
        for name, row in zip(grid.index, grid.to_numpy(), strict=True)
    ]
    return {"caption": caption, "columns": list(grid.columns), "rows": rows}


def _shifted(summary: Summary) -> dict[str, Any]:
    """Accuracies on the further test sets that were found, and why others were not run."""
    sets = shifted_sets()
    rows = []
    for name in shifted_found():
        cells = [mean_and_sd(values, f"shifted_{name}") for values in summary.values()]
        rows.append((name, sets[name]["images"], len(sets[name]["classes"]), cells))
    return {
        "models": [label(model) for model in summary],
        "rows": rows,
        "skipped": {name: found["skipped"] for name, found in sets.items() if "skipped" in found},
    }


def _before_training(alpha: float) -> dict[str, Any]:
    """What the validation images say of the teachers."""
    fusion = read_json("metrics/fusion.json", Fusion)
    return {
        "teachers": {name: fusion[name] for name in TEACHERS},
        "best_alpha": fusion["best_alpha"],
        "curves": _fusion_curves(fusion, alpha),
        "prompts": _prompts(),
    }


def _fusion_curves(fusion: dict[str, Any], alpha: float) -> list[tuple[str, str]]:
    """Figures of accuracy, likelihood and calibration over alpha, each with its text."""
    curve = read_csv("metrics/fusion/alpha.csv", ALPHA_COLUMNS)
    figures = []
    columns = [("accuracy", "accuracy", "%"), ("nll", "NLL", "nats"), ("ece", "ECE", "%")]
    for column, name, unit in columns:
        values = {model: fusion[model][column] for model in TEACHERS}
        scale, decimals = (1, 3) if column == "nll" else (100, 1)
        numbers = ", ".join(f"{label(m)} {scale * x:.{decimals}f}" for m, x in values.items())
        svg = plots.fusion_curve(curve, column, alpha, values, f"{name}, {unit}")
        text = (
            f"Validation {name} of the fused teacher over α, in {unit}: {numbers} at α = {alpha:g}."
        )
        figures.append((svg_uri(svg), text))
    return figures


def _prompts() -> dict[str, Any]:
    cache = read_json("metrics/cache/clip.json", Cached)
    single = dict(cache["single_prompt_accuracy"])
    mean, together = single.pop("mean"), cache["validation_accuracy"]
    gain = signed(100 * (together - mean))
    return {"single": single, "mean": mean, "together": together, "gain": gain}


def _trainings(
    models: Sequence[str], summary: Summary, variants: Mapping[str, Variant]
) -> list[tuple[str, str, str]]:
    """For each model its figure, and its last validation accuracy if there is one."""
    color = plots.colors(summary)
    # Over all variants, so that a loss has one colour in every figure.
    term_color = plots.colors(term for variant in variants.values() for term in variant.terms)
    figures = []
    for model in models:
        terms = list(variants[model].terms) if model in variants else ["ce"]
        path = f"metrics/curves/{model}.csv"
        curves = read_csv(path, CURVES | dict.fromkeys(terms, float), ["epoch", "seed"])
        svg = plots.training(curves, color[model], {term: term_color[term] for term in terms})
        last = ""
        if "validation_accuracy" in summary[model]:
            last = mean_and_sd(summary[model], "validation_accuracy")
        figures.append((model, svg_uri(svg), last))
    return figures


def _calibrations(summary: Summary) -> list[tuple[str, str, dict[str, float]]]:
    """For each model its reliability diagram and its numbers."""
    color = plots.colors(summary)
    figures = []
    for model, values in summary.items():
        curves = read_csv(f"metrics/calibrate/{model}.csv", BIN_COLUMNS)
        figures.append((model, svg_uri(plots.reliability(curves, color[model])), values))
    return figures


def _provenance(models: Sequence[str]) -> dict[str, Any]:
    """Where each model was trained, with which seeds, and the versions that the records name."""
    rows, versions = [], []
    for model in models:
        records = [read_json(f"{path}.json", TrainedRecord) for path in paths(f"models/{model}")]
        machines = {f"{record['device']}, {record['threads']} threads" for record in records}
        seeds = ", ".join(str(seed) for seed in sorted(record["seed"] for record in records))
        rows.append((model, seeds, "; ".join(sorted(machines))))
        versions += [
            ", ".join(f"{package} {version}" for package, version in record["versions"].items())
            for record in records
        ]
    return {"rows": rows, "versions": list(dict.fromkeys(versions))}


# --- examples -----------------------------------------------------------------------------------


class Example(NamedTuple):
    """A test image by its index, why it was chosen, and how many images are of its kind."""

    image: int
    kind: str
    images_of_kind: int


def choose_examples(correct: Mapping[str, np.ndarray], shown: Shown) -> list[Example]:
    """The first test image of each kind of agreement or disagreement that occurs, none twice.

    `correct` has for each model whether its answers are right, (N,) bool. Kinds come in pairs, for
    and against a model, so that a model's gains are not shown without its losses. Without a
    reference no students are compared.
    """
    teacher, clip, fused = (correct[model] for model in TEACHERS)
    student, reference = correct[shown.student], shown.reference
    everyone = np.stack(list(correct.values()))
    kinds = {
        "Every model is right": everyone.all(0),
        "Every model is wrong": ~everyone.any(0),
        "The teacher is wrong, the fused teacher right": ~teacher & fused,
        "CLIP is wrong, the fused teacher right": ~clip & fused,
        "One part is right, the fused teacher wrong": (teacher | clip) & ~fused,
        f"The fused teacher is right, {shown.student} wrong": fused & ~student,
    }
    if reference is not None:
        kinds |= {
            f"{reference} is wrong, {shown.student} right": ~correct[reference] & student,
            f"{reference} is right, {shown.student} wrong": correct[reference] & ~student,
        }
    chosen: list[Example] = []
    for kind, of_kind in kinds.items():
        taken = {example.image for example in chosen}
        free = [image for image in np.flatnonzero(of_kind) if image not in taken]
        if free:
            chosen.append(Example(int(free[0]), kind, int(of_kind.sum())))
    return chosen


def _examples(
    models: Sequence[str], shown: Shown, test: Split | Manifest, classes: Sequence[str]
) -> list[dict[str, Any]]:
    # The first seed's: an example shows one model's answer, not a mean.
    shape = None, len(test.labels), len(classes)
    logits = {model: read_logits(model, "test", shape, test.labels, "r")[0] for model in models}
    answers = {model: scores.argmax(1) for model, scores in logits.items()}
    correct = {model: answer == test.labels for model, answer in answers.items()}
    cards = []
    for index, kind, count in choose_examples(correct, shown):
        rows = []
        for model in models:
            confidence = softmax(logits[model][index].astype(float)).max()
            answer = classes[answers[model][index]]
            rows.append((model, answer, bool(correct[model][index]), f"{100 * confidence:.0f} %"))
        cards.append(
            {
                "image": picture_uri(test, index),
                "index": index,
                "truth": classes[test.labels[index]],
                "kind": kind,
                "count": count,
                "rows": rows,
            }
        )
    return cards


# --- pictures -----------------------------------------------------------------------------------


def svg_uri(svg: bytes) -> str:
    """An SVG as the source of an image.

    As elements of the page two SVGs could have ids in common, and they would have no alt text.
    """
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def picture_uri(test: Split | Manifest, index: int) -> str:
    """A test image as the source of an image; one from a file has at most 192 pixels a side."""
    if isinstance(test, Split):
        image = Image.fromarray(test.images[index])
    else:
        image = picture(Path(test.root, test.paths[index]))
        image.thumbnail((192, 192))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
