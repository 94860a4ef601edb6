"""What is known of a model: its metrics on the test images, and where it comes from."""

from pathlib import Path
from typing import Any

import numpy.typing as npt

from richkd.base.errors import InputError
from richkd.base.files import fingerprint
from richkd.base.revision import SOURCES, commit
from richkd.classifiers import ClassifierRecord
from richkd.data.dataset import load_info
from richkd.evaluate import calibration
from richkd.evaluate.scores import hit_rate
from richkd.use.answers import Description
from richkd.use.student import Student, classifier_record, project, saved_logits

Array = npt.NDArray[Any]

LICENSE = "Apache-2.0"


def describe(path: Path, student: Student, pixels: str) -> Description:
    """The description for an exported file; the metrics come from the model's saved test logits."""
    record = classifier_record(path)
    found = saved_logits(path, "test")
    if found is None:
        raise InputError(
            f"{project(path)} has no predictions/{path.parent.name}/test.npy or no "
            "data/test.safetensors, which tell the metrics: run `dvc repro` or `dvc pull`"
        )
    mean, std, center = student.preprocessing
    return Description(
        name=path.parent.name,
        arch=record["arch"],
        classes=student.classes,
        preprocessing={
            "pixels": pixels,
            "mean": list(mean),
            "std": list(std),
            "center": center and center._asdict(),
            "image_size": student.image_size,
        },
        temperature=student.temperature,
        metrics=figures(*found, student.temperature),
        license=LICENSE,
        provenance=provenance(path, record),
        img_size=record.get("img_size"),
    )


def figures(logits: Array, labels: Array, temperature: float | None) -> dict[str, float]:
    """Top-1, ECE and NLL at the temperature, of logits (N, C) and labels (N,)."""
    probabilities = calibration.softmax(logits.astype(float) / (temperature or 1.0), axis=1)
    return {
        "images": len(labels),
        "top1": hit_rate(logits, labels, 1),
        "ece": calibration.expected_calibration_error(probabilities, labels),
        "nll": calibration.negative_log_likelihood(probabilities, labels),
    }


def provenance(path: Path, record: ClassifierRecord) -> dict[str, Any]:
    """Where the model comes from: commit, params and their hash, data, teacher, versions."""
    kept: dict[str, Any] = dict(record)
    settings = kept.get("params") or {}
    variants = settings.get("distill", {}).get("variants", {})
    found = commit(SOURCES, project(path))
    return {
        "commit": found and found.hash + "-dirty" * found.changed,
        "seed": kept.get("seed"),
        "teacher": variants.get(path.parent.name, {}).get("teacher"),
        "data_set": load_info(project(path) / "data/info.json").name,
        "data": kept.get("data"),
        "params_sha256": fingerprint(settings),
        "params": settings,
        "versions": record["versions"],
    }
