"""What saved logits say about a model's accuracy; numpy and pandas only.

`predictions/<name>/` holds `seeds.json`, the names of the runs, such as `["seed0", "seed1"]`;
float32 `validation.npy`, `test.npy` and `shifted/<set>.npy`, each (seeds, N, C); and float16
`corrupted.npy` (seeds, corruptions, severities, N, C). In `corrupted.npy` each row's largest logit
has been subtracted from the row. Where the corrupted images were skipped, the number of corruptions
is 0. All logits are finite: `limit` clips those of a model that diverged.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, FiniteFloat
from typing_extensions import TypedDict

from richkd.base.errors import InputError
from richkd.base.files import replacing, write_json
from richkd.base.records import Shape, read_array, read_json
from richkd.data.dataset import CORRUPTED, SHIFTED, load_split
from richkd.evaluate.seeds import Figures, summarize

# AlexNet's mean error by corruption. A model's error is divided by it.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
LARGEST = 1e37  # logits of a larger size are clipped
ALEXNET_CLEAN = 1 - 0.56522  # on ImageNet's own validation images, of torchvision's weights


class FoundSet(TypedDict):
    """A further test set in `data/shifted/sets.json`."""

    images: Annotated[int, Field(ge=1)]
    classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class SkippedSet(TypedDict):
    """A further test set that was not found, and why."""

    skipped: str


class Scores(TypedDict, extra_items=Figures):  # type: ignore[call-arg] # mypy does not know it
    """`metrics/evaluate/<name>.json`; beside these a `shifted_<set>` for each further test set."""

    top1: Figures
    top5: Figures
    balanced_accuracy: Figures
    corrupted_top1: NotRequired[Figures]
    retained: NotRequired[Figures]
    mce: NotRequired[Figures]
    relative_mce: NotRequired[Figures]


# The columns of `metrics/evaluate/<name>.csv`.
CORRUPTION_COLUMNS = {"corruption": str, "severity": int, "accuracy": FiniteFloat}


def _no_two_alike(seeds: list[str]) -> list[str]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is named twice")
    return seeds


# `predictions/<name>/seeds.json`.
Seeds = Annotated[
    list[Annotated[str, Field(pattern=r"^seed\d{1,10}$")]],
    Field(min_length=1),
    AfterValidator(_no_two_alike),
]


# --- what was saved -----------------------------------------------------------------------------


def read_seeds(name: str) -> list[str]:
    """The names of the runs whose logits `predictions/<name>` holds, in their order."""
    seeds: list[str] = read_json(f"predictions/{name}/seeds.json", Seeds)
    return seeds


def read_logits(
    name: str,
    part: str,
    shape: Shape,
    labels: np.ndarray | None = None,
    mode: Literal["r"] | None = None,
) -> np.ndarray:
    """`predictions/<name>/<part>.npy`, with a `mode` mapped from the disk.

    `shape` as in `check_array`; `labels` are those of the images. Raises InputError if the file is
    damaged, has another shape, or belongs to other classes.
    """
    path = f"predictions/{name}/{part}.npy"
    logits = read_array(path, "float16 float32 float64", shape, mode)
    if not len(logits) or not logits.shape[-1]:
        raise InputError(f"{path} holds {logits.shape}: must be of at least one seed and class")
    if labels is not None and len(labels) and labels.max() >= logits.shape[-1]:
        raise InputError(f"{path} has {logits.shape[-1]} classes, there is a label {labels.max()}")
    return logits


def corrupted_sets(names: Sequence[str]) -> list[str]:
    """`names`, or no name where the corrupted images were skipped."""
    return [] if (CORRUPTED / "skipped.txt").exists() else list(names)


def shifted_sets() -> dict[str, dict[str, Any]]:
    """Further test sets by name: `images` and `classes` (labels that occur), or why `skipped`."""
    sets: dict[str, dict[str, Any]]
    sets = read_json(SHIFTED / "sets.json", dict[str, FoundSet | SkippedSet])
    return sets


def shifted_found() -> list[str]:
    """The names of the further test sets that were not skipped."""
    return [name for name, found in shifted_sets().items() if "images" in found]


def limit(logits: np.ndarray, largest: float = LARGEST) -> int:
    """Clip logits to [-largest, largest], in place; NaN becomes -largest, the last of all answers.

    Returns how many logits were changed. The difference of two logits of up to 1e37 is still a
    number of 32 bits.
    """
    if logits.min(initial=0) >= -largest and logits.max(initial=0) <= largest:
        return 0  # early, to save the array of absolute values below
    outside = ~(np.abs(logits) <= largest)
    np.nan_to_num(logits, copy=False, nan=-largest)
    np.clip(logits, -largest, largest, out=logits)
    return int(outside.sum())


# --- figures of one run -------------------------------------------------------------------------


def hit_rate(logits: np.ndarray, labels: np.ndarray, top: int) -> float:
    """Share of rows of `logits` (N, C) whose label (N,) is among the `top` largest.

    Of equal logits the first is the larger, as for argmax and `richkd.engine.accuracy`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    first = np.arange(logits.shape[1]) < labels[:, None]
    ahead = (logits > own) | ((logits == own) & first)
    return float((ahead.sum(axis=1) < top).mean())


def accuracy_among(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> float:
    """Share of rows of `logits` (N, C) that are right (N,) where `classes` are the only answers.

    The papers of ImageNet-R and ImageNet-A measure in this way: they leave out the logits of
    classes that the set does not have.
    """
    present = np.sort(classes)  # so that the first class is the answer where logits are equal
    return float((present[logits[:, present].argmax(1)] == labels).mean())


def class_accuracies(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """For each of the classes the share of its images that are right; NaN without images.

    `answers` and `labels` (N,).
    """
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[answers == labels], minlength=classes)
    return np.divide(right, images, out=np.full(classes, np.nan), where=images > 0)


def mce(errors: Mapping[str, float]) -> float | None:
    """Mean corruption error, where 1 is AlexNet's (Hendrycks and Dietterich, ICLR 2019).

    `errors` has for each corruption the mean error over the five severities. None unless it has all
    15 corruptions.
    """
    if not ALEXNET.keys() <= errors.keys():
        return None
    return float(np.mean([errors[name] / error for name, error in ALEXNET.items()]))


def relative_mce(errors: Mapping[str, float], clean_error: float) -> float | None:
    """Relative mean corruption error, where 1 is AlexNet's (Hendrycks and Dietterich, ICLR 2019).

    What corruption adds to the error on clean images, divided by what it adds to AlexNet's.
    `errors` as in `mce`, and None in the same case.
    """
    if not ALEXNET.keys() <= errors.keys():
        return None
    added = {name: errors[name] - clean_error for name in ALEXNET}
    return float(np.mean([added[x] / (error - ALEXNET_CLEAN) for x, error in ALEXNET.items()]))


# --- all figures of a model ---------------------------------------------------------------------


def score(
    name: str,
    labels: np.ndarray,
    corruptions: Sequence[str],
    severities: Sequence[int],
    imagenet: bool = False,
) -> None:
    """Write `metrics/evaluate/<name>.json` and `.csv`, accuracy by corruption and severity.

    `labels` (N,) are those of the test images, `corruptions` come from `corrupted_sets`. `imagenet`
    says whether the data set is ImageNet with its 1,000 classes: then, with all corruptions at all
    severities, the mean corruption errors are written too. `retained` is the accuracy on corrupted
    images as a share of the accuracy on clean images; 0 where no clean image is right.
    """
    seeds = read_seeds(name)
    clean = read_logits(name, "test", (len(seeds), len(labels), None), labels)
    shape = len(seeds), len(corruptions), len(severities), *clean.shape[1:]
    corrupted = read_logits(name, "corrupted", shape, labels, "r")
    shifted = _shifted_accuracies(name, clean.shape[-1], len(seeds))
    # AlexNet's published errors are means over all severities.
    comparable = imagenet and set(severities) == set(range(1, 6))
    sets = pd.MultiIndex.from_product([corruptions, severities], names=["corruption", "severity"])
    results: dict[str, dict[str, float]] = {}
    accuracies = {}
    for number, seed in enumerate(seeds):
        of_classes = class_accuracies(clean[number].argmax(1), labels, clean.shape[-1])
        results[seed] = {
            "top1": hit_rate(clean[number], labels, 1),
            "top5": hit_rate(clean[number], labels, min(5, clean.shape[-1])),
            "balanced_accuracy": float(np.nanmean(of_classes)),
        }
        shares = [(logits.argmax(-1) == labels).mean(-1) for logits in corrupted[number]]
        accuracies[seed] = pd.Series(np.ravel(shares), sets, float)
        if corruptions:
            results[seed] |= _corrupted_figures(accuracies[seed], results[seed]["top1"], comparable)
        results[seed] |= {key: values[number] for key, values in shifted.items()}
    with replacing(f"metrics/evaluate/{name}.csv") as part:
        runs = pd.concat(accuracies).groupby(sets.names, sort=False)
        runs.mean().rename("accuracy").to_csv(part)
    write_json(f"metrics/evaluate/{name}.json", summarize(results))


def _corrupted_figures(accuracies: pd.Series, clean: float, comparable: bool) -> dict[str, float]:
    """The figures of one run, from its accuracy by corruption and severity and on clean images."""
    overall = float(np.mean(accuracies.to_numpy()))
    figures = {"corrupted_top1": overall, "retained": overall / clean if clean else 0.0}
    by_corruption = accuracies.groupby("corruption").mean()
    errors = {str(corruption): 1 - float(mean) for corruption, mean in by_corruption.items()}
    if comparable and (error := mce(errors)) is not None:
        relative = relative_mce(errors, 1 - clean)
        assert relative is not None  # both need the same corruptions
        figures |= {"mce": error, "relative_mce": relative}
    return figures


def _shifted_accuracies(name: str, classes: int, seeds: int) -> dict[str, list[float]]:
    """The accuracies of the runs on each further test set."""
    accuracies = {}
    for key in shifted_found():
        present = shifted_sets()[key]["classes"]
        if max(present) >= classes:
            raise InputError(
                f"{SHIFTED / 'sets.json'}: {key} has the class {max(present)}, of {classes}"
            )
        truth = load_split(SHIFTED / f"{key}.safetensors").labels
        logits = read_logits(name, f"shifted/{key}", (seeds, len(truth), classes), truth, "r")
        accuracies[f"shifted_{key}"] = [accuracy_among(run, truth, present) for run in logits]
    return accuracies


# --- models beside each other -------------------------------------------------------------------


def agreements(
    models: Sequence[str], teachers: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each model the share of the clean test images with the same answer as each teacher.

    Returns `{model: {teacher: figures}}`, where figures are as `summarize` returns them. Teachers
    have one run, and no teacher is compared with itself.
    """
    answers = {model: _answers(model) for model in dict.fromkeys([*models, *teachers])}
    of_teachers = {teacher: next(iter(answers[teacher].values())) for teacher in teachers}
    return {
        model: summarize(
            {
                seed: {
                    teacher: float(np.mean(own == theirs))
                    for teacher, theirs in of_teachers.items()
                    if teacher != model
                }
                for seed, own in answers[model].items()
            }
        )
        for model in models
    }


def class_table(models: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each class: its name, its number of clean test images, each model's accuracy.

    `labels` (N,) are those of the test images. Accuracies are means over seeds; for a class without
    images they are missing.
    """
    images = np.bincount(labels, minlength=len(classes))
    table = pd.DataFrame({"class": list(classes), "images": images})
    for model in models:
        runs = _answers(model).values()
        table[model] = np.mean([class_accuracies(x, labels, len(classes)) for x in runs], axis=0)
    return table


def _answers(name: str) -> dict[str, np.ndarray]:
    """The classes, (N,), that each run of a model gives to the clean test images."""
    seeds = read_seeds(name)
    logits = read_logits(name, "test", (len(seeds), None, None), mode="r")
    return {seed: run.argmax(1) for seed, run in zip(seeds, logits, strict=True)}
