"""A teacher by its name: found in `cache/<name>`, checked, and made ready for lookups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from richkd import weights
from richkd.base.errors import InputError
from richkd.base.files import read_json, sha256
from richkd.classifiers import load_classifier
from richkd.data.views import RandomResizedCrop, Views
from richkd.engine import free_memory
from richkd.teachers.online import Online
from richkd.teachers.table import Streamed, Table

if TYPE_CHECKING:  # torchvision takes a second
    pass

ViewSet = Views | RandomResizedCrop

TRAIN = "data/train.safetensors"


def place(
    shards: dict[str, list[Tensor]],
    views: int,
    images: int,
    device: torch.device,
    num_classes: int | None = None,
) -> Table:
    """The parts, of `views` views of `images` images, on the device or streamed to it.

    On a GPU where that leaves half of its free memory; on a CPU where one file holds a part, which is
    mapped.
    """
    size = sum(x.nbytes for part in shards.values() for x in part)
    if device.type == "cpu":
        whole = all(len(part) == 1 for part in shards.values())
    else:
        whole = size <= free_memory(device) / 2
    if not whole:
        return Streamed(shards, images if views > 1 else None, device, num_classes)
    parts = {}
    for name, (first, *more) in shards.items():
        if more:  # not torch.cat, which takes as much memory again
            table = first.new_empty(views * images, first.shape[-1], device=device)
            for rows, shard in zip(table.split(len(first)), shards[name]):
                rows.copy_(shard)
        else:
            table = first.to(device)
        parts[name] = table.view(views, images, -1)
    return Table(**parts, num_classes=num_classes)


def identity(
    model: Path, views: ViewSet, held: str, top_k: int | None, **more: Any
) -> dict[str, Any]:
    """What a cache is made from: by name, what makes it useless when it changes.

    `model` is the path of the teacher's weights without its suffix, `held` is `all`, `center` or
    `online`, `more` is what else shapes the outputs.
    """
    record = read_json(f"{model}.json")
    return {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "input of the teacher": {
            key: record.get(key) for key in ("mean", "std", "center", "input")
        },
        "set of views": {**views.described, "held": held},
        "top k": top_k,
        **{name.replace("_", " "): value for name, value in more.items()},
    }


def of(
    name: str,
    views: ViewSet,
    held: str,
    top_k: int | None,
    device: torch.device,
    parts: Sequence[str] = ("logits", "features"),
    **more: Any,
) -> Table:
    """The `parts` of the cache of `models/<name>`, for lookups on the device.

    Other arguments as for `identity`; InputError names what it was made from if that is not so now.
    """
    folder = Path("cache") / name
    (model,) = weights.paths(f"models/{name}")
    made_from = read_json(folder / "cache.json")
    needed = json.loads(json.dumps(identity(model, views, held, top_k, **more)))  # tuples to lists
    for part, value in needed.items():
        if made_from.get(part) != value:
            raise InputError(
                f"{folder} was made with another {part} ({_short(made_from.get(part))}, needed is "
                f"{_short(value)}): make it again"
            )
    if held == "online":
        tqdm.write(f"{folder}: the teacher runs along, on the {device.type}")
        return Online(load_classifier(model, device))
    if top_k and "logits" in parts:
        parts = [*parts, "classes"]
    # Mapped: what a CPU never looks up takes no memory.
    shards = {part: _open(folder, part) for part in parts}
    shape = made_from["shape"]
    tensors = {part: [torch.from_numpy(x) for x in arrays] for part, arrays in shards.items()}
    table = place(tensors, shape["views"], shape["images"], device, shape["classes"])
    size = sum(x.nbytes for part in tensors.values() for x in part)
    way = "streamed from the disk" if isinstance(table, Streamed) else f"on the {device.type}"
    tqdm.write(f"{folder}: {size / 1e6:,.1f} MB of {' and '.join(parts)}, {way}")
    return table


def _open(folder: Path, part: str) -> list[np.ndarray]:
    """The shards of a part in order, mapped."""
    paths = sorted(folder.glob(f"{part}-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    return [np.load(path, mmap_mode="c") for path in paths]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
