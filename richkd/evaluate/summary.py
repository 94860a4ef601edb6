"""One experiment's results in numbers, for `dvc metrics diff`, and in sentences.

Reads the metrics that the other stages wrote, below the working directory. Files of variants that
params.yaml no longer names may still be there; only the files of the models asked for are read.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pandas as pd
from pydantic import ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict

from richkd.base.errors import InputError
from richkd.base.records import read_json
from richkd.evaluate.scores import Scores
from richkd.evaluate.seeds import Figures, Metrics
from richkd.params.students import Variant

TEACHERS = ("teacher", "clip", "fused")
ALONE = "ce"  # the student trained on labels alone, which every experiment has


class Column(NamedTuple):
    """How a metric is shown: its heading, and the number that it is multiplied by."""

    heading: str
    scale: float
    decimals: int
    more_is_better: bool


COLUMNS = {
    "top1": Column("top-1, %", 100, 1, True),
    "top5": Column("top-5, %", 100, 1, True),
    "corrupted_top1": Column("corrupted top-1, %", 100, 1, True),
    "mce": Column("mCE, %", 100, 1, False),
    "ece": Column("ECE, %", 100, 1, False),
    "nll": Column("NLL, nats", 1, 3, False),
    "confident_wrong": Column("confident and wrong, %", 100, 1, False),
}
Summary = dict[str, dict[str, float]]


@with_config(ConfigDict(extra="allow"))
class Calibrated(TypedDict):
    """Of `metrics/calibrate/<name>.json`: on clean or on corrupted images.

    Without a fitted temperature there is no `ece_tempered`, and no mean where a seed has none.
    """

    ece: Figures
    nll: Figures
    confident_wrong: Figures
    ece_tempered: NotRequired[dict[str, FiniteFloat]]


class Calibration(TypedDict):
    """`metrics/calibrate/<name>.json`, as the stage `calibrate` writes it."""

    clean: Calibrated
    corrupted: NotRequired[Calibrated]


@with_config(ConfigDict(extra="allow"))
class BestAlpha(TypedDict):
    """Of `metrics/fusion.json`: the alpha of the highest accuracy."""

    alpha: FiniteFloat
    accuracy: FiniteFloat


@with_config(ConfigDict(extra="allow"))
class Mixture(TypedDict):
    """Of `metrics/fusion.json`: a teacher, or the fused one, on the validation images."""

    accuracy: FiniteFloat
    nll: FiniteFloat
    ece: FiniteFloat
    confident_correct: FiniteFloat
    confident_wrong: FiniteFloat
    unsure_correct: FiniteFloat
    unsure_wrong: FiniteFloat
    semantic_closeness: FiniteFloat


class Fusion(TypedDict):
    """`metrics/fusion.json`, as the stage `fusion` writes it where there are validation images."""

    teacher: Mixture
    clip: Mixture
    fused: Mixture
    best_alpha: BestAlpha


class Cached(TypedDict):
    """`metrics/cache/clip.json`, as the stage `cache` writes it where there are such images."""

    validation_accuracy: FiniteFloat
    single_prompt_accuracy: Figures


# The columns of `metrics/fusion/alpha.csv`: for each alignment of both teachers' logits, none,
# temperature or standardize, a row for each alpha of `fusion.grid`. An alignment that is not
# possible has no rows. `nll_tempered` is the NLL at the mixture's own best temperature, and empty
# where there is none.
ALPHA_COLUMNS = {
    "align": Literal["none", "temperature", "standardize"],
    **dict.fromkeys(("alpha", "accuracy", "nll", "ece"), FiniteFloat),
    "nll_tempered": float,
}
# The columns of `metrics/fusion/choices.csv`: a row for each way to choose the fused teacher,
# measured on the validation images. Both files are empty where there are no such images.
# - `align`: as above. `chosen`: how alpha was chosen. `given` is the number in params.yaml, or the
#   paper's 0.7 where `fusion.alpha` is auto; `auto` the alpha of the lowest NLL at the mixture's
#   best temperature; `per class` an alpha a class, whose row is there only where that wins on
#   images that it was not fitted on.
# - `alpha`: the alpha, `per class` the common one. `alpha_low` and `alpha_high`: the middle 95 % of
#   the choices on bootstrap draws of the images, for `auto` alone.
# - `temperature`: the best one of the mixture, and `nll_tempered`: the NLL there; empty if none is.
# - For each of CHOICE_METRICS: the value, and in `<metric>_gain`, `_gain_low` and `_gain_high` its
#   difference to the first row, align none and alpha given, with the 95 % interval of that
#   difference on bootstrap draws of the images. More accuracy is better, and less of all else.
# - `shipped`: true for the one row that the students learn from.
CHOICE_METRICS = ("accuracy", "nll", "nll_tempered", "ece", "confident_wrong")
CHOICE_COLUMNS = {
    "align": Literal["none", "temperature", "standardize"],
    "chosen": Literal["given", "auto", "per class"],
    **dict.fromkeys(("alpha", "alpha_low", "alpha_high", "temperature"), float),
    **{
        f"{metric}{end}": float
        for metric in CHOICE_METRICS
        for end in ("", "_gain", "_gain_low", "_gain_high")
    },
    "shipped": bool,
}
Empty = Annotated[dict[str, Any], Field(max_length=0)]  # where there are no validation images


# --- numbers ------------------------------------------------------------------------------------


def read_summary(models: Sequence[str]) -> Summary:
    """`{model: {metric: number}}`: means over seeds, and `<metric>_sd` where there are several.

    Accuracy on validation images, everything else on test images; calibration as in
    `metrics/calibrate`. Metrics that need validation images are left out where there are none, and
    tempered ones where a run has no best temperature.
    """
    summary = {model: _flatten(_read_metrics(model)) for model in models}
    # The table of results has a cell for each of these metrics and models.
    for metric in COLUMNS:
        without = [model for model in models if metric not in summary[model]]
        if without and len(without) < len(models):
            raise InputError(
                f"the metrics of {without[0]} have no {metric}, those of other models have one: "
                "run `dvc repro`"
            )
    return summary


def _read_metrics(model: str) -> dict[str, dict[str, float]]:
    """Metrics of `model` in the shape of `richkd.evaluate.seeds.summarize`."""
    calibration = read_json(f"metrics/calibrate/{model}.json", Calibration)
    clean, corrupted = calibration["clean"], calibration.get("corrupted", {})
    metrics = {
        "validation_accuracy": _validation_accuracy(model),
        **read_json(f"metrics/evaluate/{model}.json", Scores),
        **{key: clean.get(key) for key in ("ece", "ece_tempered", "nll", "confident_wrong")},
        "corrupted_ece": corrupted.get("ece"),
        "corrupted_ece_tempered": corrupted.get("ece_tempered"),
        "corrupted_confident_wrong": corrupted.get("confident_wrong"),
    }
    return {metric: values for metric, values in metrics.items() if values and "mean" in values}


def _validation_accuracy(model: str) -> dict[str, float] | None:
    """In the shape of `richkd.evaluate.seeds.summarize`; None without validation images."""
    if model == "fused":
        fusion = read_json("metrics/fusion.json", Fusion | Empty)
        return {"mean": fusion["fused"]["accuracy"]} if fusion else None
    if model == "clip":
        cache = read_json("metrics/cache/clip.json", Cached | Empty)
        return {"mean": cache["validation_accuracy"]} if cache else None
    accuracy: dict[str, float] | None
    accuracy = read_json(f"metrics/train/{model}.json", Metrics).get("validation_accuracy")
    return accuracy


def _flatten(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    flat = {}
    for metric, values in metrics.items():
        flat[metric] = values["mean"]
        if "sd" in values:
            flat[f"{metric}_sd"] = values["sd"]
    return flat


def accuracies_by_run(models: Sequence[str]) -> dict[str, list[float]]:
    """The top-1 accuracies of each model's runs on the clean test images."""
    accuracies = {}
    for model in models:
        values = read_json(f"metrics/evaluate/{model}.json", Scores)["top1"]
        accuracies[model] = [value for key, value in values.items() if key.startswith("run")]
    return accuracies


def summary_table(summary: Summary, accuracies: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """One row a model: model, runs, and every metric of the summary.

    `accuracies` has one number for each run of a model. A missing sd is an empty cell.
    """
    rows = pd.DataFrame(summary).T
    metrics = [name for name in map(str, rows) if not name.endswith("_sd")]
    rows = rows.reindex(columns=[name for metric in metrics for name in (metric, f"{metric}_sd")])
    rows.insert(0, "runs", [len(accuracies[model]) for model in summary])
    return rows.rename_axis("model").reset_index()


# --- which student is shown ---------------------------------------------------------------------


class Shown(NamedTuple):
    """The student that the report shows in detail, and the student to compare with.

    Without variants there is `ce` alone: no reference, and the reason is empty.
    """

    student: str
    reference: str | None
    reason: str  # a sentence: why this student


def choose_shown(summary: Summary, variants: Mapping[str, Variant]) -> Shown:
    """Choose by validation accuracy, so that the test images do not decide.

    The reference is the first variant under the teacher `teacher`, else `ce`. The student shown is
    one under the fused teacher; where there is none, any variant but the reference. Where the
    reference is the only variant, it is shown itself, and `ce` is the reference.
    """
    if not variants:
        return Shown(ALONE, None, "")
    under_teacher = [name for name, variant in variants.items() if variant.teacher == "teacher"]
    reference = under_teacher[0] if under_teacher else ALONE
    candidates = [name for name, variant in variants.items() if variant.teacher == "fused"]
    group = "students under the fused teacher"
    if not candidates:
        candidates = [name for name in variants if name != reference]
        group = f"variants other than {reference}" if under_teacher else "variants"
    if not candidates:
        return Shown(reference, ALONE, f"{reference} is shown since it is the only variant.")
    if "validation_accuracy" not in summary[ALONE]:
        student = candidates[-1]
        reason = (
            f"{student} is shown since it is the last of the {group} in distill.variants; "
            "it was not chosen on test images."
        )
    else:
        student = best_student(summary, candidates, "validation_accuracy")
        reason = f"{student} is shown since it has the highest validation accuracy of the {group}."
    return Shown(student, reference, reason)


def best_student(summary: Summary, students: Sequence[str], metric: str) -> str:
    """The student of the largest mean; the first of equals."""
    return max(students, key=lambda student: summary[student][metric])


# --- sentences ----------------------------------------------------------------------------------


def findings(summary: Summary, reference: str | None, dataset: str) -> list[str]:
    """What the numbers say, whichever way they fall; accuracies on test images.

    Every variant is compared with `reference`, a student. Without a reference `ce` is the only
    student, and no students are compared.
    """
    students = [model for model in summary if model not in TEACHERS]
    best = best_student(summary, students, "top1")
    sentences = [_fused_and_parts(summary)]
    if reference is not None:
        others = [student for student in students if student not in (ALONE, reference)]
        comparisons = [_comparison(summary, student, reference) for student in others]
        sentences = [*comparisons, *sentences, _best_and_alone(summary, best)]
    return [*sentences, _caution(summary, best, dataset)]


def _comparison(summary: Summary, student: str, reference: str) -> str:
    parts = []
    for metric, images in _accuracies(summary):
        a, b = summary[student], summary[reference]
        difference = 100 * (a[metric] - b[metric])
        part = f"{signed(difference)} points on {images} images"
        if f"{metric}_sd" in a:
            sd = 100 * max(a[f"{metric}_sd"], b[f"{metric}_sd"])
            verdict = "more than one sd" if abs(difference) > sd else "within one sd"
            part += f" ({verdict}: the larger of the two is {sd:.1f})"
        parts.append(part)
    alone = "" if "top1_sd" in summary[student] else "; one seed, so no spread to compare with"
    return f"{student} against {reference}: {', '.join(parts)}{alone}."


def _fused_and_parts(summary: Summary) -> str:
    parts = []
    for metric, images in _accuracies(summary):
        teacher, clip, fused = (100 * summary[model][metric] for model in TEACHERS)
        if fused > max(teacher, clip):
            verdict = "above both its parts"
        elif fused >= min(teacher, clip):
            verdict = "not above the better of its parts"
        else:
            verdict = "below both its parts"
        parts.append(
            f"{verdict} on {images} images ({fused:.1f} % against {teacher:.1f} % of the teacher "
            f"and {clip:.1f} % of CLIP)"
        )
    return f"The fused teacher is {' and '.join(parts)}."


def _best_and_alone(summary: Summary, best: str) -> str:
    behind = 100 * (summary[best]["top1"] - summary[ALONE]["top1"])
    if behind > 0:
        return (
            f"The best student on clean images is {best}; {ALONE}, trained on labels alone, is "
            f"{behind:.1f} points below it."
        )
    return f"No student is above {ALONE}, trained on labels alone, on clean images."


def _caution(summary: Summary, best: str, dataset: str) -> str:
    caution = "The spread over seeds says nothing about the choice of images"
    if dataset == "digits":
        caution += ", which share scans within a split"
    if "validation_accuracy" in summary[best]:
        gap = 100 * (summary[best]["top1"] - summary[best]["validation_accuracy"])
        caution += f": {best} is {signed(gap)} points on test against validation images"
    return f"{caution}. Differences between models on the same images are the firmer figure."


def _accuracies(summary: Summary) -> list[tuple[str, str]]:
    """Accuracies that the summary has, and of which images each is."""
    accuracies = [("top1", "clean"), ("corrupted_top1", "corrupted")]
    return [(metric, images) for metric, images in accuracies if metric in summary["teacher"]]


def signed(value: float, decimals: int = 1) -> str:
    """`value` rounded, with its sign; a zero is +0."""
    # Adding 0 takes the sign off a zero that rounding left negative.
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def mean_and_sd(values: Mapping[str, float], metric: str) -> str:
    """A mean, with its standard deviation where it has one, as the tables show it."""
    column = COLUMNS.get(metric, COLUMNS["top1"])
    text = f"{column.scale * values[metric]:.{column.decimals}f}"
    if f"{metric}_sd" in values:
        text += f" ± {column.scale * values[f'{metric}_sd']:.{column.decimals}f}"
    return text
