"""Train the conventional teacher with cross entropy, or take a ready-made one; then test it."""

import shutil
from typing import Any

import pandas as pd
import torch

from richkd import engine, params
from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.files import write_json
from richkd.classifiers import Loaded, load_classifier, save_classifier
from richkd.data import imagesets
from richkd.data.dataset import load_info, load_split
from richkd.data.views import Center
from richkd.evaluate.seeds import write_training
from richkd.model_records import paths
from richkd.teachers import ready_made
from richkd.train.seeds import Job, TrainingData, train_seeds
from stages import run


def main() -> None:
    settings = params.load("teacher", "views", "runtime")
    params.check_networks()  # this machine's timm may be another than that of the stage `code`
    device = engine.pick_device(settings.runtime.device, settings.runtime.deterministic)
    recorded = params.to_dict(settings)
    for key in ("min_accuracy", "urls"):  # these do not change the weights
        recorded["teacher"].pop(key, None)
    if settings.teacher.source == "train":
        job = Job("teacher", settings.teacher, [settings.teacher.seed], recorded, [__file__])
        data = TrainingData(settings.views, settings.runtime)
        train_seeds(job, data, write_training)
    if distributed.rank() > 0:
        return
    if not isinstance(settings.teacher, params.TrainedTeacher):
        use_ready_made(settings.teacher, Center.of(settings.views), recorded)
        write_training(
            "teacher", pd.DataFrame(), {"seed0": validated(device, settings.runtime.precision)}
        )
    tested = accuracy("test", device, settings.runtime.precision)
    write_json("metrics/teacher.json", {"test_accuracy": tested})
    print(
        f"the teacher, {settings.teacher.arch}, is right on {100 * tested:.2f} % of the test images"
    )
    if tested < settings.teacher.min_accuracy:
        raise InputError(
            f"the teacher's accuracy on the test images is {tested:.4f}, teacher.min_accuracy is "
            f"{settings.teacher.min_accuracy}: is it another data set, are the weights or the "
            "normalisation others?"
        )


def use_ready_made(
    teacher: params.ReadyMadeTeacher, center: Center | None, recorded: dict[str, Any]
) -> None:
    """Save a ready-made teacher; `center` is None where images are taken as they are."""
    classes, test = load_info("data/info.json").classes, load_split("data/test.safetensors")
    found = ready_made.obtain(teacher, len(classes))
    preprocessing = found.preprocessing
    if center is None:
        preprocessing = preprocessing._replace(center=None)
    elif preprocessing.center is None:  # nothing says how files are cut for the published weights
        preprocessing = preprocessing._replace(center=center)
    shutil.rmtree("models/teacher", ignore_errors=True)
    save_classifier(
        "models/teacher/seed0",
        Loaded(found.model, preprocessing),
        torch.device("cpu"),
        arch=found.arch,
        num_classes=len(classes),
        classes=classes,
        image_size=imagesets.for_inference(test, preprocessing, torch.device("cpu")).shape[-1],
        img_size=found.img_size,
        params=recorded,
        data=found.data,
    )
    print(f"models/teacher: {found.arch} from {', '.join(found.data)}")


def validated(device: torch.device, precision: str) -> dict[str, float]:
    """The saved teacher's accuracy on the validation images, where there are any."""
    if not len(load_split("data/validation.safetensors").labels):
        return {}
    return {"validation_accuracy": accuracy("validation", device, precision)}


def accuracy(split: str, device: torch.device, precision: str) -> float:
    """The accuracy of the saved teacher, loaded in the way the other stages load it."""
    (path,) = paths("models/teacher")
    model, preprocessing = load_classifier(path, device)
    images = load_split(f"data/{split}.safetensors")
    inputs = imagesets.for_inference(images, preprocessing, device)
    logits, _ = engine.predict(model, inputs, 500, precision)
    return engine.accuracy(logits, torch.from_numpy(images.labels).to(device))


if __name__ == "__main__":
    run(main, parallel=True)
