"""One experiment's results as a page to read.

Reads what the other stages wrote, below the working directory, without torch. Models come in the
order teacher, clip, fused, then the students.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from safetensors import safe_open
from scipy.special import softmax

from richkd.base.files import read_json
from richkd.data.dataset import Manifest, Split, load_info, load_split, picture
from richkd.evaluate import plots
from richkd.evaluate.scores import shifted_found, shifted_sets
from richkd.evaluate.summary import (
    COLUMNS,
    TEACHERS,
    Summary,
    best_student,
    findings,
    signed,
    spread,
)

LABELS = {"clip": "CLIP"}
EXPLAINED = {
    "teacher": "the conventional classifier",
    "clip": "zero-shot from class names",
    "fused": "logits of both, mixed",
    "ce": "labels alone",
    "kd": "labels, the teacher’s logits",
    "L": "labels, fused logits",
    "F": "labels, fused features",
    "LF": "labels, fused logits and features",
}
QUADRANTS = ("confident_correct", "confident_wrong", "unsure_correct", "unsure_wrong")


class Example(NamedTuple):
    """A test image by its index, why it was chosen, and how many there are of its kind."""

    index: int
    kind: str
    count: int


# --- examples -----------------------------------------------------------------------------------


def choose_examples(correct: dict[str, np.ndarray], shown: str, reference: str) -> list[Example]:
    """The first test image of each kind of agreement or disagreement that occurs, none twice.

    `correct` has for each model whether it is right, (N,) bool; `shown` and `reference` are the
    students to compare. Kinds come in pairs, for and against: which model gains is not what
    chooses.
    """
    teacher, clip, fused = (correct[model] for model in TEACHERS)
    everyone = np.stack(list(correct.values()))
    kinds = {
        "Every model is right": everyone.all(0),
        "Every model is wrong": ~everyone.any(0),
        "The teacher is wrong, the fused teacher right": ~teacher & fused,
        "CLIP is wrong, the fused teacher right": ~clip & fused,
        "One part is right, the fused teacher wrong": (teacher | clip) & ~fused,
        f"The fused teacher is right, {shown} wrong": fused & ~correct[shown],
        f"{reference} is wrong, {shown} right": ~correct[reference] & correct[shown],
        f"{reference} is right, {shown} wrong": correct[reference] & ~correct[shown],
    }
    chosen = []
    for kind, held in kinds.items():
        taken = {example.index for example in chosen}
        free = [index for index in np.flatnonzero(held) if index not in taken]
        if free:
            chosen.append(Example(int(free[0]), kind, int(held.sum())))
    return chosen


def _examples(
    models: Sequence[str],
    shown: str,
    reference: str,
    test: Split | Manifest,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    # The first seed's: an example shows one model's answer, not a mean.
    logits = {model: np.load(f"predictions/{model}/test.npy", mmap_mode="r")[0] for model in models}
    answers = {model: scores.argmax(1) for model, scores in logits.items()}
    correct = {model: answer == test.labels for model, answer in answers.items()}
    cards = []
    for index, kind, count in choose_examples(correct, shown, reference):
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


# --- the page -----------------------------------------------------------------------------------


def render(p: SimpleNamespace, summary: Summary, params_text: str) -> str:
    """The whole page, self-contained HTML.

    `p` has `dataset.captioned_images`, `teacher`, `clip`, `student.arch`, `fusion.alpha`,
    `fusion.lam`, `baseline.variants`, `distill.variants`, `distill.seeds`, `corruptions.source`
    and `calibration.threshold`.
    """
    models = list(summary)
    baselines, distilled = p.baseline.variants, p.distill.variants
    students = [*baselines, *distilled]
    info, test = load_info("data/info.json"), load_split("data/test.safetensors")
    images = {split: count(split) for split in ("train", "validation", "test")}
    # Named before the test images are looked at.
    shown = distilled[-1]
    if images["validation"]:
        shown = best_student(summary, distilled, "validation_accuracy")
    reference = "kd" if "kd" in baselines else baselines[0]
    ready_made = [name for name in ("teacher", "clip") if getattr(p, name).source != "train"]
    trained = [model for model in models if model not in (*ready_made, "fused")]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda x: f"{100 * x:.1f}", "label": label}
    return environment.get_template("report.html").render(
        p=p,
        info=info,
        images=images,
        shown=shown,
        reference=reference,
        explained=EXPLAINED,
        results=_results(summary, students),
        columns=[(COLUMNS[metric][0], COLUMNS[metric][3]) for metric in columns(summary)],
        findings=findings(summary, baselines, distilled, info.name),
        corrupted=_corrupted(models, shown, reference)
        if "corrupted_top1" in summary["teacher"]
        else None,
        shifted=_shifted(summary),
        before=_before_training(p.fusion.alpha) if images["validation"] else None,
        quadrants=QUADRANTS,
        trainings=_trainings([model for model in trained if model != "clip"], summary),
        calibrations=_calibrations(summary),
        teacher=summary["teacher"],
        examples=_examples(models, shown, reference, test, info.classes),
        provenance=_provenance(trained),
        least=plots.LEAST,
        params_text=params_text,
        other_alpha=0.7 if p.fusion.alpha != 0.7 else 0.5,
    )


def count(split: str) -> int:
    """Images in a split, from its file's header."""
    with safe_open(f"data/{split}.safetensors", "numpy") as file:
        return file.get_slice("labels").get_shape()[0]


def columns(summary: Summary) -> list[str]:
    """The metrics shown of those that there are."""
    return [metric for metric in COLUMNS if metric in summary["teacher"]]


def label(model: str) -> str:
    return LABELS.get(model, model)


def _results(summary: Summary, students: Sequence[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row a model: its cells, and whether each is the best student's."""
    best = {}
    for metric in columns(summary):
        values = [summary[student][metric] for student in students]
        best[metric] = max(values) if COLUMNS[metric][3] else min(values)
    return [
        (
            model,
            [
                (spread(values, metric), model in students and values[metric] == best[metric])
                for metric in best
            ],
        )
        for model, values in summary.items()
    ]


def _corrupted(models: Sequence[str], shown: str, reference: str) -> list[dict[str, Any]]:
    """Tables of accuracy by corruption, coloured: all models, then three by severity."""
    grids = {}
    for model in models:
        long = pd.read_csv(f"metrics/evaluate/{model}.csv")
        grid = 100 * long.pivot(index="corruption", columns="severity", values="accuracy")
        grids[model] = grid.loc[long.corruption.unique()]
    means = pd.DataFrame({label(model): grid.mean(axis=1) for model, grid in grids.items()})
    difference = grids[shown] - grids[reference]
    bound = max(difference.abs().to_numpy().max(), 1)
    return [
        _heat("All models, mean over severities, %", means),
        _heat("The fused teacher by severity, %", grids["fused"]),
        _heat(f"{shown} by severity, %", grids[shown]),
        _heat(
            f"{shown} minus {reference} by severity, points",
            difference, -bound, bound, "RdBu", lambda value: signed(value, 0),
        ),
    ]  # fmt: skip


def _shifted(summary: Summary) -> dict[str, Any]:
    """Accuracies on the further test sets that were there, and why others were not run."""
    sets = shifted_sets()
    rows = []
    for name in shifted_found():
        metric, found = f"shifted_{name}", sets[name]
        cells = [spread(values, metric) for values in summary.values()]
        rows.append((name, found["images"], len(found["classes"]), cells))
    return {
        "models": [label(model) for model in summary],
        "rows": rows,
        "skipped": {name: what["skipped"] for name, what in sets.items() if "skipped" in what},
    }


def _heat(caption, grid, low=0, high=100, colormap="cividis", text="{:.0f}".format):
    rows = [
        (name, [(text(value), plots.shade(value, low, high, colormap)) for value in row])
        for name, row in zip(grid.index, grid.to_numpy(), strict=True)
    ]
    return {"caption": caption, "columns": list(grid.columns), "rows": rows}


def _before_training(alpha: float) -> dict[str, Any]:
    """What the validation images say of the teachers."""
    fusion = read_json("metrics/fusion.json")
    return {
        "teachers": {name: fusion[name] for name in TEACHERS},
        "best_alpha": fusion["best_alpha"],
        "curves": _fusion_curves(fusion, alpha),
        "prompts": _prompts(),
    }


def _fusion_curves(fusion: dict[str, Any], alpha: float) -> list[tuple[str, str]]:
    """Images of accuracy, likelihood and calibration over alpha, and what they show."""
    curve = pd.read_csv("metrics/fusion/alpha.csv")
    figures = []
    columns = [("accuracy", "accuracy", "%"), ("nll", "NLL", "nats"), ("ece", "ECE", "%")]
    for column, name, unit in columns:
        values = {model: fusion[model][column] for model in TEACHERS}
        scale, decimals = (1, 3) if column == "nll" else (100, 1)
        said = ", ".join(f"{label(m)} {scale * x:.{decimals}f}" for m, x in values.items())
        svg = plots.fusion_curve(curve, column, alpha, values, f"{name}, {unit}")
        text = f"Validation {name} of the fused teacher over α, in {unit}: {said} at α = {alpha:g}."
        figures.append((svg_uri(svg), text))
    return figures


def _prompts() -> dict[str, Any]:
    found = read_json("metrics/cache/clip.json")
    single = dict(found["single_prompt_accuracy"])
    mean, together = single.pop("mean"), found["validation_accuracy"]
    gain = signed(100 * (together - mean))
    return {"single": single, "mean": mean, "together": together, "gain": gain}


def _trainings(models: Sequence[str], summary: Summary) -> list[tuple[str, str, str]]:
    """For each model its figure, and its last validation accuracy if there is one."""
    figures = []
    for model in models:
        svg = plots.training(pd.read_csv(f"metrics/curves/{model}.csv"), plots.COLORS[model])
        last = ""
        if "validation_accuracy" in summary[model]:
            last = f"{100 * summary[model]['validation_accuracy']:.1f}"
        if "validation_accuracy_sd" in summary[model]:
            last += f" ± {100 * summary[model]['validation_accuracy_sd']:.1f}"
        figures.append((model, svg_uri(svg), last))
    return figures


def _calibrations(summary: Summary) -> list[tuple[str, str, dict[str, float]]]:
    figures = []
    for model, values in summary.items():
        curves = pd.read_csv(f"metrics/calibrate/{model}.csv")
        figures.append((model, svg_uri(plots.reliability(curves, plots.COLORS[model])), values))
    return figures


def _provenance(models: Sequence[str]) -> dict[str, Any]:
    """Where each model was trained, with which seeds, and the versions that all of them name."""
    rows, versions = [], []
    for model in models:
        records = [read_json(path) for path in sorted(Path("models", model).glob("seed*.json"))]
        machines = {f"{record['device']}, {record['threads']} threads" for record in records}
        seeds = ", ".join(str(seed) for seed in sorted(record["seed"] for record in records))
        rows.append((model, seeds, "; ".join(sorted(machines))))
        said = [", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in records]
        versions += [line for line in said if line not in versions]
    return {"rows": rows, "versions": list(dict.fromkeys(versions))}


def svg_uri(svg: bytes) -> str:
    # An image, not an element of the page: ids of two SVGs never meet, and it has an alt text.
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def picture_uri(test: Split | Manifest, index: int) -> str:
    """A test image, a file's at most 192 pixels wide and high."""
    if isinstance(test, Split):
        image = Image.fromarray(test.images[index])
    else:
        image = picture(Path(test.root, test.paths[index]))
        image.thumbnail((192, 192))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
