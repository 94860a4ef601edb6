"""One experiment's results in numbers, for `dvc metrics diff`, and in sentences.

Reads the metrics that the other stages wrote, below the working directory. Those of no longer wanted
variants may lie around and are never looked at.
"""

from collections.abc import Sequence

import pandas as pd

from richkd.base.files import read_json

TEACHERS = ("teacher", "clip", "fused")
COLUMNS = {  # metric: heading, scale, decimals, whether more is better
    "top1": ("top-1, %", 100, 1, True),
    "top5": ("top-5, %", 100, 1, True),
    "corrupted_top1": ("corrupted top-1, %", 100, 1, True),
    "mce": ("mCE, %", 100, 1, False),
    "ece": ("ECE, %", 100, 1, False),
    "nll": ("NLL, nats", 1, 3, False),
    "confident_wrong": ("confident and wrong, %", 100, 1, False),
}
Summary = dict[str, dict[str, float]]


# --- numbers ------------------------------------------------------------------------------------


def summarize(models: Sequence[str]) -> Summary:
    """`{model: {metric: number}}`: means over seeds, and `<metric>_sd` where there are several.

    Accuracy on validation images, everything else on test images; calibration as in
    `metrics/calibrate`. What needs validation images is there only if these are.
    """
    return {model: _flat(_figures(model)) for model in models}


def _figures(model: str) -> dict[str, dict[str, float]]:
    """Metrics of `model` in the shape of `richkd.evaluate.seeds.summarize`."""
    calibration = read_json(f"metrics/calibrate/{model}.json")
    clean, corrupted = calibration["clean"], calibration.get("corrupted", {})
    figures = {
        "validation_accuracy": _validation_accuracy(model),
        **read_json(f"metrics/evaluate/{model}.json"),
        **{key: clean.get(key) for key in ("ece", "ece_tempered", "nll", "confident_wrong")},
        "corrupted_ece": corrupted.get("ece"),
        "corrupted_ece_tempered": corrupted.get("ece_tempered"),
        "corrupted_confident_wrong": corrupted.get("confident_wrong"),
    }
    return {metric: values for metric, values in figures.items() if values}


def _validation_accuracy(model: str) -> dict[str, float] | None:
    """In the same shape; None without validation images."""
    if model == "fused":
        fusion = read_json("metrics/fusion.json")
        return {"mean": fusion["fused"]["accuracy"]} if fusion else None
    if model == "clip":
        cache = read_json("metrics/cache/clip.json")
        return {"mean": cache["validation_accuracy"]} if cache else None
    return read_json(f"metrics/train/{model}.json").get("validation_accuracy")


def _flat(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    flat = {}
    for metric, values in figures.items():
        flat[metric] = values["mean"]
        if "sd" in values:
            flat[f"{metric}_sd"] = values["sd"]
    return flat


def accuracies(models: Sequence[str]) -> dict[str, list[float]]:
    """Clean top-1 accuracies of each model's runs."""
    found = {}
    for model in models:
        values = read_json(f"metrics/evaluate/{model}.json")["top1"]
        found[model] = [value for key, value in values.items() if key.startswith("run")]
    return found


def table(summary: Summary, runs: dict[str, list[float]]) -> pd.DataFrame:
    """One row a model: model, runs, and every metric of the summary; no sd is an empty cell."""
    rows = pd.DataFrame(summary).T
    metrics = [name for name in rows if not name.endswith("_sd")]
    rows = rows.reindex(columns=[name for x in metrics for name in (x, f"{x}_sd")])
    rows.insert(0, "runs", [len(runs[model]) for model in rows.index])
    return rows.rename_axis("model").reset_index()


# --- sentences ----------------------------------------------------------------------------------


def findings(
    summary: Summary, baselines: Sequence[str], distilled: Sequence[str], dataset: str
) -> list[str]:
    """What the numbers say, whichever way they fall; accuracies on test images."""
    reference = "kd" if "kd" in baselines else baselines[0]
    sentences = [_comparison(summary, variant, reference) for variant in distilled]
    sentences.append(_fused_and_parts(summary))
    best = best_student(summary, [*baselines, *distilled], "top1")
    if "ce" in baselines:
        behind = 100 * (summary[best]["top1"] - summary["ce"]["top1"])
        sentences.append(
            f"The best student on clean images is {best}; ce, trained on labels alone, is "
            f"{behind:.1f} points below it."
            if behind > 0
            else "No student is above ce, trained on labels alone, on clean images."
        )
    caution = "The spread over seeds says nothing about the choice of images"
    if dataset == "digits":
        caution += ", which share scans within a split"
    if "validation_accuracy" in summary[best]:
        gap = 100 * (summary[best]["top1"] - summary[best]["validation_accuracy"])
        caution += f": {best} is {signed(gap)} points on test against validation images"
    firmer = "Differences between models on the same images are the firmer figure."
    return [*sentences, f"{caution}. {firmer}"]


def _comparison(summary: Summary, variant: str, reference: str) -> str:
    parts = []
    for metric, where in _accuracies(summary):
        a, b = summary[variant], summary[reference]
        difference = 100 * (a[metric] - b[metric])
        part = f"{signed(difference)} points on {where} images"
        if f"{metric}_sd" in a:
            sd = 100 * max(a[f"{metric}_sd"], b[f"{metric}_sd"])
            verdict = "more than one sd" if abs(difference) > sd else "within one sd"
            part += f" ({verdict}: the larger of the two is {sd:.1f})"
        parts.append(part)
    alone = "" if "top1_sd" in summary[variant] else "; one seed, so no spread to hold this against"
    return f"{variant} against {reference}: {', '.join(parts)}{alone}."


def _fused_and_parts(summary: Summary) -> str:
    parts = []
    for metric, where in _accuracies(summary):
        teacher, clip, fused = (100 * summary[model][metric] for model in TEACHERS)
        if fused > max(teacher, clip):
            verdict = "above both its parts"
        elif fused >= min(teacher, clip):
            verdict = "not above the better of its parts"
        else:
            verdict = "below both its parts"
        parts.append(
            f"{verdict} on {where} images ({fused:.1f} % against {teacher:.1f} % of the teacher "
            f"and {clip:.1f} % of CLIP)"
        )
    return f"The fused teacher is {' and '.join(parts)}."


def _accuracies(summary: Summary) -> list[tuple[str, str]]:
    """Metrics of the images that there are, and what these are called."""
    every = [("top1", "clean"), ("corrupted_top1", "corrupted")]
    return [(metric, where) for metric, where in every if metric in summary["teacher"]]


def best_student(summary: Summary, students: Sequence[str], metric: str) -> str:
    """The student of the largest mean; the first of equals."""
    return max(students, key=lambda student: summary[student][metric])


def signed(value: float, decimals: int = 1) -> str:
    # Adding 0 takes the sign off a zero that rounding left negative.
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def spread(values: dict[str, float], metric: str) -> str:
    """A mean, with its standard deviation where it has one, as the tables show it."""
    _, scale, decimals, _ = COLUMNS.get(metric, COLUMNS["top1"])
    text = f"{scale * values[metric]:.{decimals}f}"
    if f"{metric}_sd" in values:
        text += f" ± {scale * values[f'{metric}_sd']:.{decimals}f}"
    return text
