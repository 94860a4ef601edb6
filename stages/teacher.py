"""Train the conventional teacher with cross entropy, or take a ready-made one; then test it."""

import shutil
from typing import Any

import pandas as pd
import torch

from richkd import classifiers, engine, params, weights
from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.files import write_json
from richkd.data import imagesets
from richkd.data.dataset import load_info, load_split
from richkd.data.views import Center
from richkd.evaluate.seeds import summarize
from richkd.teachers import ready_made as teachers
from richkd.train.objective import Objective
from richkd.train.seeds import TrainingData, train_seeds, write_curves
from stages import run


def main() -> None:
    p = params.load("teacher", "views", "runtime")
    device = engine.start(p.runtime.device, p.runtime.deterministic)
    recorded = params.to_dict(p)
    for key in ("min_accuracy", "urls"):  # another of these is no other teacher
        recorded["teacher"].pop(key, None)
    if p.teacher.source == "train":
        data = TrainingData(p.views, p.runtime)
        seeds, inputs = [p.teacher.seed], [__file__]
        train_seeds("teacher", data, p.teacher, seeds, lambda model: Objective(), recorded, inputs)
    if distributed.rank() > 0:
        return
    if p.teacher.source != "train":
        take(p.teacher, Center.of(p.views), device, p.runtime.precision, recorded)
    tested = accuracy("test", device, p.runtime.precision)
    write_json("metrics/teacher.json", {"test_accuracy": tested})
    print(f"the teacher, {p.teacher.arch}, is right on {100 * tested:.2f} % of the test images")
    if tested < p.teacher.min_accuracy:
        raise InputError(
            f"the teacher's accuracy on the test images is {tested:.4f}, teacher.min_accuracy is "
            f"{p.teacher.min_accuracy}: another data set, other weights or another normalisation?"
        )


def take(
    teacher: params.Teacher,
    center: Center | None,
    device: torch.device,
    precision: str,
    recorded: dict[str, Any],
) -> None:
    """Write what `train_seeds` writes, of a teacher that is trained already."""
    info = load_info("data/info.json")
    found = teachers.obtain(teacher, len(info.classes))
    if center and found.center:  # what it was published with, where files have to be cut
        center = found.center
    shutil.rmtree("models/teacher", ignore_errors=True)
    record = {
        "kind": "classifier",
        "arch": found.arch,
        "num_classes": len(info.classes),
        "mean": found.mean,
        "std": found.std,
        "center": center and center._asdict(),
        "params": recorded,
        "data": found.data,
        **weights.provenance(torch.device("cpu")),
    }
    weights.save("models/teacher/seed0", found.model.state_dict(), record)
    measured = {}
    if len(load_split("data/validation.safetensors").labels):
        measured["validation_accuracy"] = accuracy("validation", device, precision)
    write_json("metrics/train/teacher.json", summarize({"seed0": measured}))
    write_curves("teacher", pd.DataFrame())
    print(f"models/teacher: {found.arch} from {', '.join(found.data)}")


def accuracy(split: str, device: torch.device, precision: str) -> float:
    """Of the saved teacher, read as the other stages read it."""
    (path,) = weights.paths("models/teacher")
    model, *look = classifiers.load_classifier(path, device)
    images = load_split(f"data/{split}.safetensors")
    logits, _ = engine.predict(
        model, imagesets.for_inference(images, *look, device), 500, precision
    )
    return engine.accuracy(logits, torch.from_numpy(images.labels).to(device))


if __name__ == "__main__":
    run(main, parallel=True)
