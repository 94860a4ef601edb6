"""From a record beside saved weights to a model in eval mode."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from richkd import models
from richkd.base.files import read_json
from richkd.data.views import Center
from richkd.weights import load_into


class Loaded(NamedTuple):
    """A model in eval mode, the mean and std its input is normalised with, how files are cut for it."""

    model: nn.Module
    mean: list[float]
    std: list[float]
    center: Center | None  # None where images are taken as they are


def load_classifier(path: Path | str, device: torch.device) -> Loaded:
    """The classifier or the zero-shot CLIP saved as `path`.json and `path`.safetensors."""
    record = read_json(f"{path}.json")
    if record["kind"] == "clip":
        from richkd.clip.zero_shot import load_zero_shot

        model = load_zero_shot(path, record).eval().to(device)
        return Loaded(model, [0.0] * 3, [1.0] * 3, _center(record))
    model = models.create(record["arch"], record["num_classes"])
    load_into(model, f"{path}.safetensors")
    model.eval().to(device, memory_format=torch.channels_last)
    return Loaded(model, record["mean"], record["std"], _center(record))


def _center(record: dict[str, Any]) -> Center | None:
    return Center(**record["center"]) if record["center"] else None
