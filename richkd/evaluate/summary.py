"""One experiment's results: numbers for `dvc metrics diff` and for tables, and sentences.

Reads the metrics that the other stages wrote, below the working directory. Files of variants that
params.yaml no longer names may still be there; only the files of the models asked for are read.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pandas as pd
from pydantic import ConfigDict, Field, FiniteFloat, with_config
from scipy.stats import t as student_t
from typing_extensions import TypedDict

from richkd.base.errors import InputError
from richkd.base.records import read_json
from richkd.evaluate.scores import Scores, agreements
from richkd.evaluate.seeds import Difference, Figures, Metrics, paired
from richkd.params.sources import Alignment

TEACHERS = ("teacher", "clip", "fused")
ALONE = "ce"  # the student trained on labels alone, which every experiment has


class Column(NamedTuple):
    """How a metric is shown: its heading, and `scale`, the number that it is multiplied by."""

    heading: str
    scale: float
    decimals: int
    more_is_better: bool


# The columns of the table of results. All are of clean images, except `mce` and those whose heading
# says corrupted or corruption.
COLUMNS = {
    "top1": Column("top-1, %", 100, 1, True),
    "top5": Column("top-5, %", 100, 1, True),
    "corrupted_top1": Column("corrupted top-1, %", 100, 1, True),
    "retained": Column("retained under corruption, %", 100, 1, True),
    "mce": Column("mCE, %", 100, 1, False),
    "ece": Column("ECE, %", 100, 1, False),
    "nll": Column("NLL, nats", 1, 3, False),
    "confident_wrong": Column("confident and wrong, %", 100, 1, False),
    "aurc": Column("AURC, %", 100, 2, False),
}
# What `dvc metrics diff` shows of each model.
HEADLINE = ("top1", "corrupted_top1", "ece", "nll", "confident_wrong")


class Values(NamedTuple):
    """One metric of a model: `by_seed` has the runs, such as `{"seed0": 0.9, "seed1": 0.8}`.

    `sd` is the sample's standard deviation; with one seed it is None. The teachers have one seed.
    """

    mean: float
    sd: float | None
    by_seed: Mapping[str, float]


Summary = dict[str, dict[str, Values]]  # by model and metric


class Calibrated(TypedDict, extra_items=dict[str, FiniteFloat]):  # type: ignore[call-arg] # mypy does not know it
    """Of `metrics/calibrate/<name>.json`: on clean images, or the mean over the corrupted sets.

    Without a fitted temperature there is no `ece_tempered`, and no mean where a seed has none.
    """

    ece: Figures
    nll: Figures
    confident_wrong: Figures
    aurc: Figures


class Calibration(TypedDict):
    """`metrics/calibrate/<name>.json`, as the stage `calibrate` writes it."""

    clean: Calibrated
    corrupted: NotRequired[Calibrated]


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
    """`metrics/fusion.json`, as the stage `fusion` writes it with validation images."""

    teacher: Mixture
    clip: Mixture
    fused: Mixture


class Cached(TypedDict):
    """`metrics/cache/clip.json`, as the stage `cache` writes it with validation images."""

    validation_accuracy: FiniteFloat
    single_prompt_accuracy: Figures


# The columns of `metrics/fusion/alpha.csv`: for each alignment of both teachers' logits a row
# for each alpha of `fusion.grid`. An alignment that is not possible has no rows. `nll_tempered` is
# the NLL at the mixture's own best temperature, and empty where there is none.
ALPHA_COLUMNS = {
    "align": Alignment,
    **dict.fromkeys(("alpha", "accuracy", "nll", "ece"), FiniteFloat),
    "nll_tempered": float,
}
# The columns of `metrics/fusion/choices.csv`: a row for each way to choose the fused teacher,
# measured on the validation images. Both files are empty where there are no such images.
# - `align`: as above. `chosen`: how alpha was chosen. `given` is the number in params.yaml, or the
#   paper's 0.7 where `fusion.alpha` is auto; `auto` the alpha of the lowest NLL at the mixture's
#   best temperature; `per class` an alpha for each class. The row `per class` is there only if it
#   wins on images that it was not fitted on.
# - `alpha`: the alpha; for `per class` the common alpha. `alpha_low` and `alpha_high`: the middle
#   95 % of the choices on bootstrap draws of the images, for `auto` alone.
# - `temperature`: the best temperature of the mixture, and `nll_tempered`: the NLL there. Both are
#   empty if no temperature is best.
# - For each of CHOICE_METRICS: the value, and in `<metric>_gain`, `_gain_low` and `_gain_high` its
#   difference to the first row, align none and alpha given, with the 95 % interval of that
#   difference on bootstrap draws of the images. More accuracy is better, and less of all else.
# - `shipped`: true for the one row that the students learn from.
CHOICE_METRICS = ("accuracy", "nll", "nll_tempered", "ece", "confident_wrong")
CHOICE_COLUMNS = {
    "align": Alignment,
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
    """All metrics of the models, means and seed by seed.

    - From `metrics/train`: `train_accuracy`, `validation_accuracy` and all that stands beside them.
    All other metrics are of test images:
    - from `metrics/evaluate`: all;
    - from `metrics/calibrate`: the clean part under its own names, and the corrupted part, means
      over the corrupted sets, with `corrupted_` in front;
    - `agreement_<teacher>`: the share of the clean images with the teacher's answer.

    Metrics that need validation images are left out where there are none, and tempered metrics
    where a run has no best temperature.
    """
    summary = {model: _read_metrics(model) for model in models}
    for model, shares in agreements(models, TEACHERS).items():
        summary[model] |= {
            f"agreement_{teacher}": _values(figures) for teacher, figures in shares.items()
        }
    # The table of results has a cell for each of these metrics and models.
    for metric in COLUMNS:
        without = [model for model in models if metric not in summary[model]]
        if without and len(without) < len(models):
            raise InputError(
                f"the metrics of {without[0]} have no {metric}, those of other models have one: "
                "run `dvc repro`"
            )
    return summary


def _read_metrics(model: str) -> dict[str, Values]:
    scores = read_json(f"metrics/evaluate/{model}.json", Scores)
    calibration = read_json(f"metrics/calibrate/{model}.json", Calibration)
    figures = {
        **_after_training(model, next(iter(_values(scores["top1"]).by_seed))),
        **scores,
        **calibration["clean"],
        **{f"corrupted_{key}": x for key, x in calibration.get("corrupted", {}).items()},
    }
    return {metric: _values(found) for metric, found in figures.items() if "mean" in found}


def _values(figures: Mapping[str, float]) -> Values:
    """From the shape of `richkd.evaluate.seeds.summarize`."""
    by_seed = {key: value for key, value in figures.items() if key.startswith("seed")}
    return Values(figures["mean"], figures.get("sd"), by_seed)


def _after_training(model: str, seed: str) -> Metrics:
    """The metrics of `metrics/train`; for CLIP and the fused teacher the validation accuracy."""
    if model == "fused":
        fusion = read_json("metrics/fusion.json", Fusion | Empty)
        accuracy = fusion["fused"]["accuracy"] if fusion else None
    elif model == "clip":
        cache = read_json("metrics/cache/clip.json", Cached | Empty)
        accuracy = cache["validation_accuracy"] if cache else None
    else:
        metrics: Metrics = read_json(f"metrics/train/{model}.json", Metrics)
        return metrics
    if accuracy is None:
        return {}
    return {"validation_accuracy": {"mean": accuracy, seed: accuracy}}


def headline(summary: Summary) -> dict[str, dict[str, float]]:
    """The few means that `dvc metrics diff` and `dvc exp show` show: `{model: {metric: mean}}`."""
    return {
        model: {metric: values[metric].mean for metric in HEADLINE if metric in values}
        for model, values in summary.items()
    }


def results_table(summary: Summary) -> pd.DataFrame:
    """All metrics, a row for each run and metric: model, seed, metric, value."""
    rows = [
        (model, int(seed.removeprefix("seed")), metric, value)
        for model, metrics in summary.items()
        for metric, values in metrics.items()
        for seed, value in values.by_seed.items()
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])


def summary_table(summary: Summary) -> pd.DataFrame:
    """A row for each model: model, number of seeds, and each metric's mean and sd.

    Validation accuracy comes first, then the table of results. A metric that a model lacks is an
    empty cell.
    """
    rows = []
    for model, metrics in summary.items():
        row: dict[str, Any] = {"model": model, "seeds": len(metrics["top1"].by_seed)}
        for metric in ("validation_accuracy", *COLUMNS):
            if metric in metrics:
                row |= {metric: metrics[metric].mean, f"{metric}_sd": metrics[metric].sd}
        rows.append(row)
    return pd.DataFrame(rows)


# --- one student against another ----------------------------------------------------------------


def differences(summary: Summary, reference: str) -> dict[str, dict[str, Difference]]:
    """What each other student gains against `reference`, `{student: {metric: Difference}}`.

    Paired by seed, for the metrics of the table of results. A difference that is `shown` is beyond
    two standard errors.
    """
    students = [model for model in summary if model not in (*TEACHERS, reference)]
    return {
        student: {
            metric: compare(summary, student, reference, metric)
            for metric in COLUMNS
            if metric in summary[student]
        }
        for student in students
    }


def compare(summary: Summary, student: str, reference: str, metric: str) -> Difference:
    """The `metric` of `student` minus that of `reference`, paired by seed."""
    return paired(summary[student][metric].by_seed, summary[reference][metric].by_seed)


def best_students(summary: Summary, metric: str) -> set[str]:
    """The students to set in bold: the best mean, and all within one standard error of it.

    The standard error is that of the paired difference from the best. With one seed there is no
    standard error, so only the best and its equals are set in bold.
    """
    students = [model for model in summary if model not in TEACHERS]
    sign = 1 if COLUMNS[metric].more_is_better else -1
    best = max(students, key=lambda student: sign * summary[student][metric].mean)
    behind = {student: compare(summary, student, best, metric) for student in students}
    return {
        student for student, gap in behind.items() if abs(gap.mean) <= (gap.standard_error or 0)
    }


# --- sentences ----------------------------------------------------------------------------------


def findings(summary: Summary, best: str, dataset: str) -> list[str]:
    """What the numbers say, whichever way they fall; accuracies on test images.

    `best` is the best student, as chosen without the test images.
    """
    return [_fused_and_parts(summary), _caution(summary, best, dataset)]


def meaning_of_shown(seeds: int) -> str:
    """What ± and bold mean in a table of differences over so many seeds."""
    if seeds == 1:
        return "With one seed there is no standard error, so no difference is shown."
    chance = 2 * student_t.sf(2, seeds - 1)
    return (
        "± is the standard error of the mean difference, paired by seed; bold is what lies beyond "
        f"two of them. With {seeds} seeds, chance alone goes beyond two in {100 * chance:.0f} % of "
        "comparisons."
    )


def _fused_and_parts(summary: Summary) -> str:
    parts = []
    for metric, images in _accuracies(summary):
        teacher, clip, fused = (100 * summary[model][metric].mean for model in TEACHERS)
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


def _caution(summary: Summary, best: str, dataset: str) -> str:
    caution = "The spread over seeds says nothing about the choice of images"
    if dataset == "digits":
        caution += ", which share scans within a split"
    if "validation_accuracy" in summary[best]:
        accuracy = summary[best]["validation_accuracy"]
        gap = 100 * (summary[best]["top1"].mean - accuracy.mean)
        caution += f": {best} is {signed(gap)} points on test against validation images"
    return f"{caution}. Differences between models on the same images are the firmer figure."


def _accuracies(summary: Summary) -> list[tuple[str, str]]:
    """Accuracies that the summary has, and of which images each is."""
    accuracies = [("top1", "clean"), ("corrupted_top1", "corrupted")]
    return [(metric, images) for metric, images in accuracies if metric in summary["teacher"]]


def signed(value: float, decimals: int = 1) -> str:
    """`value` rounded, with its sign; a zero is +0."""
    # Adding 0 turns the -0 that rounding may give into 0.
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")
