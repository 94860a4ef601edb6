"""A trained classifier in plain Python: its classes, its preprocessing, its answers."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from richkd import models
from richkd.base.errors import InputError
from richkd.base.records import read_array, reading
from richkd.classifiers import ClassifierRecord, Loaded, load_classifier, load_record
from richkd.data.dataset import load_split
from richkd.data.imagesets import cut_center
from richkd.data.pictures import fit, picture, upright
from richkd.data.resident import normalise
from richkd.data.views import Center, Preprocessing
from richkd.evaluate.calibration import fit_temperature
from richkd.model_records import paths
from richkd.use.answers import Answer, Description, best

CPU = torch.device("cpu")
AT_ONCE = 64  # images in a batch


class Student:
    """A classifier on the CPU.

    model: in eval mode; takes normalised float32 images (N, 3, size, size).
    classes: the names, in the order of the logits.
    preprocessing: mean and standard deviation of the input, and how images are cut.
    image_size: the side in pixels of the images that the network was trained on.
    temperature: divides the logits before the softmax, so that probabilities are calibrated; None
        where no temperature could be fitted.
    """

    def __init__(
        self, loaded: Loaded, classes: list[str], image_size: int, temperature: float | None
    ):
        self.model, self.preprocessing = loaded
        self.classes, self.image_size, self.temperature = classes, image_size, temperature

    def preprocess(self, image: Image.Image | Path | str) -> Tensor:
        """An image, or the path of one, as the network takes it: float32 (3, size, size).

        Raises InputError for a file that cannot be decoded.
        """
        found = upright(image)[0] if isinstance(image, Image.Image) else picture(image)
        center = self.preprocessing.center
        if center is None:
            found = fit(found, self.image_size)
        pixels = torch.from_numpy(np.array(found)).permute(2, 0, 1)
        cut = cut_center(pixels, center) if center else pixels
        return normalise(cut[None].float(), self.preprocessing)[0]

    @torch.inference_mode()
    def predict(
        self, images: Sequence[Image.Image | Path | str], top: int = 5
    ) -> list[list[Answer]]:
        """The `top` likeliest classes of each image, with their probabilities, likeliest first."""
        answers: list[list[Answer]] = []
        for start in range(0, len(images), AT_ONCE):
            batch = torch.stack([self.preprocess(x) for x in images[start : start + AT_ONCE]])
            logits = self.model(batch).logits / (self.temperature or 1.0)
            answers += best(logits.softmax(1).numpy(), self.classes, top)
        return answers


def load(model: Path | str, seed: int | None = None) -> Student:
    """The classifier in a folder such as `models/LF`, or in an exported safetensors file.

    `seed` chooses one of the folder's seeds, by default the first. The temperature is fitted to the
    saved logits of the validation images, if `predictions/` and `data/` lie beside `models/`.
    Raises InputError where there is no such model.
    """
    if str(model).endswith(".safetensors"):
        return load_exported(Path(model))
    path = find(Path(model), seed)
    record = classifier_record(path)
    size = record["center"]["size"] if record["center"] else record["image_size"]
    return Student(load_classifier(path, CPU), record["classes"], size, _temperature(path))


def find(folder: Path, seed: int | None) -> Path:
    """The path, without suffix, of the folder's model of that seed; with None of the first."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of models: name one such as models/LF")
    if folder.name in ("", ".."):  # `.` has no name
        folder = Path(os.path.abspath(folder))
    found = paths(folder)
    chosen = found if seed is None else [path for path in found if path.name == f"seed{seed}"]
    if not chosen:
        names = ", ".join(path.name.removeprefix("seed") for path in found)
        raise InputError(f"{folder} has no seed {seed}: must be one of {names}")
    return chosen[0]


def project(path: Path) -> Path:
    """The folder that holds `models/`, for a model at `path`, such as `models/LF/seed0`."""
    return Path(os.path.abspath(path)).parents[2]  # without any `..`


def classifier_record(path: Path) -> ClassifierRecord:
    """The record of a model; InputError for CLIP, and for a record without class names."""
    record = load_record(path)
    if record["kind"] == "clip":
        raise InputError(f"{path.parent} is CLIP: name a student or the teacher")
    if "classes" not in record or not (record["center"] or "image_size" in record):
        raise InputError(f"{path}.json has no class names or image size: run `dvc repro`")
    return record


def saved_logits(path: Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The saved logits (N, C) of a model on a split, and the labels (N,); None if not there.

    They lie in `predictions/` and `data/`, beside the folder `models/`.
    """
    root = project(path)
    logits = root / "predictions" / path.parent.name / f"{split}.npy"
    labels = root / "data" / f"{split}.safetensors"
    if not logits.exists() or not labels.exists():
        return None
    truth = load_split(labels).labels
    together = paths(path.parent)
    shape = len(together), len(truth), None
    try:
        found = read_array(logits, "float32 float64", shape)
    except InputError as error:
        raise InputError(f"{error}; if data/ was made anew since, run `dvc repro`") from None
    return found[together.index(path)], truth


def _temperature(path: Path) -> float | None:
    found = saved_logits(path, "validation")
    return fit_temperature(*found) if found and len(found[1]) else None


def load_exported(path: Path) -> Student:
    """The classifier in a safetensors file that `python -m richkd export` wrote."""
    with reading(path), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    about = Description.of_metadata(metadata, path)
    model = models.create(about.arch, len(about.classes), about.img_size)
    with reading(path):
        model.load_state_dict(load_file(path))
    how = about.preprocessing
    center = Center(**how["center"]) if how["center"] else None
    loaded = Loaded(model.eval(), Preprocessing(how["mean"], how["std"], center))
    return Student(loaded, about.classes, how["image_size"], about.temperature)
