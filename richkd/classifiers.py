"""Classifiers on disk, and zero-shot CLIP: from a record to a model in eval mode, and back."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import torch
from pydantic import Field
from torch import nn

from richkd import models, weights
from richkd.base.errors import InputError
from richkd.base.records import read_json
from richkd.clip.zero_shot import ClipRecord, load_zero_shot
from richkd.data.views import Center, Preprocessing
from richkd.model_records import Mean, ModelRecord, RecordedCenter, Sd, Side

# More is no number of classes, but a damaged record, and would ask for too much memory.
MOST_CLASSES = 100_000


class ClassifierRecord(ModelRecord):
    """The record of a classifier, as `save_classifier` writes it.

    The stages give it the classes' names, in the order of the logits, and `image_size`, the side in
    pixels of the images that the network was trained on.
    """

    kind: Literal["classifier"]
    arch: str
    num_classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    mean: Mean
    std: Sd
    center: RecordedCenter | None
    classes: NotRequired[list[str]]
    image_size: NotRequired[Side]
    img_size: NotRequired[Side]  # of a network of timm that was made for another side


Record = Annotated[ClassifierRecord | ClipRecord, Field(discriminator="kind")]


class Loaded(NamedTuple):
    """A model, and what its input is normalised with and how files are cut for it."""

    model: nn.Module
    preprocessing: Preprocessing


def load_record(path: Path | str) -> ClassifierRecord | ClipRecord:
    """The record `path`.json beside a model. InputError if it does not hold what it must."""
    record: ClassifierRecord | ClipRecord = read_json(f"{path}.json", Record)
    return record


def load_classifier(path: Path | str, device: torch.device) -> Loaded:
    """The classifier or the zero-shot CLIP saved as `path`.json and `path`.safetensors.

    The model is in eval mode. CLIP normalises by itself: its images are pixels in [0, 1]. Raises
    InputError if a file is damaged or the weights do not fit the record.
    """
    record = load_record(path)
    center = Center(**record["center"]) if record["center"] else None
    if record["kind"] == "clip":
        zero_shot = load_zero_shot(path, record).eval().to(device)
        return Loaded(zero_shot, Preprocessing([0.0] * 3, [1.0] * 3, center))
    try:
        model = models.create(record["arch"], record["num_classes"], record.get("img_size"))
    except InputError as error:  # no such network
        raise InputError(f"{path}.json: {error}") from None
    weights.load_into(model, f"{path}.safetensors")
    model.eval().to(device).to(memory_format=torch.channels_last)
    return Loaded(model, Preprocessing(record["mean"], record["std"], center))


def save_classifier(
    path: Path | str,
    loaded: Loaded,
    device: torch.device,
    *,
    arch: str,
    num_classes: int,
    img_size: int | None = None,
    **more: Any,
) -> None:
    """Write `path`.safetensors and `path`.json for `load_classifier`.

    `arch`, `num_classes` and `img_size` are those of `models.create`. `more` are further entries of
    the record, such as params, seed and metrics. `device` is the one that the record names: where
    the model was trained.
    """
    mean, std, center = loaded.preprocessing
    record = {
        "kind": "classifier",
        "arch": arch,
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
        "center": center and center._asdict(),
        **({"img_size": img_size} if img_size else {}),
        **more,
        **weights.provenance(device),
    }
    weights.save(path, loaded.model.state_dict(), record)
