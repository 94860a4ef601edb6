"""What saved logits say about a model's accuracy; numpy and pandas only.

`predictions/<name>/` holds float32 `validation.npy`, `test.npy` and `shifted/<set>.npy`, each
(seeds, N, C), and float16 `corrupted.npy` (seeds, corruptions, severities, N, C). Each row of
`corrupted.npy` has had its largest logit subtracted. Where the corrupted images were skipped, the
number of corruptions is 0. All logits are finite: `limit` clips those of a model that diverged.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pandas as pd
from pydantic import Field, FiniteFloat
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
    corrupted_top1: NotRequired[Figures]
    mce: NotRequired[Figures]


# The columns of `metrics/evaluate/<name>.csv`.
CORRUPTION_COLUMNS = {"corruption": str, "severity": int, "accuracy": FiniteFloat}


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


def limit(logits: np.ndarray, largest: float = 1e37) -> int:
    """Clip logits to [-largest, largest], in place; NaN becomes -largest, the last of all answers.

    Returns how many logits were changed. The difference of two logits of up to 1e37 is still a
    number of 32 bits.
    """
    if logits.min(initial=0) >= -largest and logits.max(initial=0) <= largest:
        return 0  # without an array of their sizes
    outside = ~(np.abs(logits) <= largest)
    np.nan_to_num(logits, copy=False, nan=-largest)
    np.clip(logits, -largest, largest, out=logits)
    return int(outside.sum())


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

    The papers of ImageNet-R and ImageNet-A measure so: the logits of classes that the set does not
    have are left out.
    """
    present = np.sort(classes)  # so that the first class is the answer where logits are equal
    return float((present[logits[:, present].argmax(1)] == labels).mean())


def mce(errors: Mapping[str, float]) -> float | None:
    """Mean corruption error, where 1 is AlexNet's.

    `errors` has for each corruption the mean error over the five severities. None unless it has all
    15 corruptions.
    """
    if not ALEXNET.keys() <= errors.keys():
        return None
    return float(np.mean([errors[name] / error for name, error in ALEXNET.items()]))


def score(
    name: str,
    labels: np.ndarray,
    corruptions: Sequence[str],
    severities: Sequence[int],
    imagenet: bool = False,
) -> None:
    """Write `metrics/evaluate/<name>.json` and `.csv`, accuracy by corruption and severity.

    `labels` (N,) are the test images', `corruptions` come from `corrupted_sets`. `imagenet` says
    whether the data set is ImageNet with its 1,000 classes: with all corruptions at all severities
    the mean corruption error is written, too.
    """
    clean = read_logits(name, "test", (None, len(labels), None), labels)
    seeds, *images_and_classes = clean.shape
    shape = seeds, len(corruptions), len(severities), *images_and_classes
    corrupted = read_logits(name, "corrupted", shape, labels, "r")
    # AlexNet's published errors are means over all severities.
    comparable = imagenet and set(severities) == set(range(1, 6))
    classes = {key: shifted_sets()[key]["classes"] for key in shifted_found()}
    for key, present in classes.items():
        if max(present) >= clean.shape[-1]:
            raise InputError(
                f"{SHIFTED / 'sets.json'}: {key} has the class {max(present)}, of {clean.shape[-1]}"
            )
    results, rows = {}, []
    for seed in range(len(clean)):
        results[f"run{seed}"] = result = {
            "top1": hit_rate(clean[seed], labels, 1),
            "top5": hit_rate(clean[seed], labels, min(5, clean.shape[-1])),
        }
        shares = [(scores.argmax(-1) == labels).mean(-1) for scores in corrupted[seed]]
        if corruptions:
            result["corrupted_top1"] = float(np.mean(shares))
        errors = {
            corruption: 1 - float(share.mean())
            for corruption, share in zip(corruptions, shares, strict=True)
        }
        if comparable and (error := mce(errors)) is not None:
            result["mce"] = error
        for key, present in classes.items():
            truth = load_split(SHIFTED / f"{key}.safetensors").labels
            shape = seeds, len(truth), clean.shape[-1]
            logits = read_logits(name, f"shifted/{key}", shape, truth, "r")[seed]
            result[f"shifted_{key}"] = accuracy_among(logits, truth, present)
        rows += [
            {"run": seed, "corruption": corruption, "severity": severity, "accuracy": share[i]}
            for corruption, share in zip(corruptions, shares, strict=True)
            for i, severity in enumerate(severities)
        ]
    table = pd.DataFrame(rows, columns=["run", "corruption", "severity", "accuracy"])
    with replacing(f"metrics/evaluate/{name}.csv") as part:
        table.groupby(["corruption", "severity"], sort=False).accuracy.agg(accuracy="mean").to_csv(
            part
        )
    write_json(f"metrics/evaluate/{name}.json", summarize(results))
