"""A teacher by its name: found in `cache/<name>`, checked, and made ready for lookups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from richkd import weights
from richkd.base.errors import InputError
from richkd.base.files import read_json, sha256
from richkd.classifiers import load_classifier
from richkd.data.views import RandomResizedCrop, Views
from richkd.engine import free_memory
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import FUSED, load_recipe, table_fingerprints
from richkd.teachers.online import Online
from richkd.teachers.table import Shards, Streamed, Table
from richkd.teachers.teacher import Teacher

ViewSet = Views | RandomResizedCrop

CACHE = Path("cache")
TRAIN = "data/train.safetensors"


def identity(model: Path, views: ViewSet, cached_views: str, top_k: int | None) -> dict[str, Any]:
    """What a table is made from, by name: if any of these changes, the table is out of date.

    `model` is the path of the teacher's weights without its suffix; `cached_views` is `all`,
    `center` or `online`.
    """
    record = read_json(f"{model}.json")
    keys = ("mean", "std", "center", "input")
    parts = {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "input of the teacher": {key: record.get(key) for key in keys},
        "set of views": {**views.described, "held": cached_views},
        "top k": top_k,
    }
    if record["kind"] == "clip":  # both shape the logits, and neither is among the weights
        parts |= {"prompts": record["prompts"], "logit scale": record["scale"]}
    return parts


def open_teacher(name: str, views: ViewSet, device: torch.device, parts: Sequence[str]) -> Teacher:
    """The teacher `teacher`, `clip` or `fused`, for lookups of `parts` on the device.

    `parts` are some of logits, features and maps. InputError where a table no longer belongs to
    the model, the data or the views, where the fused teacher was made of other tables, and for maps
    of a teacher that does not run along. How many views and logits a table holds, it says itself.
    """
    if name != "fused":
        return _open_one(name, views, device, parts)
    recipe = load_recipe()
    for table, made_of in table_fingerprints().items():
        if recipe.tables[table] != made_of:
            raise InputError(f"{FUSED} was made of another {CACHE / table}: run `dvc repro fusion`")
    return Fused(recipe, *(_open_one(x, views, device, parts) for x in ("teacher", "clip")))


def _open_one(name: str, views: ViewSet, device: torch.device, parts: Sequence[str]) -> Teacher:
    folder = CACHE / name
    (model,) = weights.paths(f"models/{name}")
    made_from = read_json(folder / "cache.json")
    try:
        cached_views, top_k = made_from["set of views"]["held"], made_from["top k"]
    except KeyError:
        raise InputError(
            f"{folder} is of another version of this code: run `dvc repro cache@{name}`"
        ) from None
    needed = json.loads(json.dumps(identity(model, views, cached_views, top_k)))  # tuples to lists
    for part, value in needed.items():
        if made_from.get(part) != value:
            raise InputError(
                f"{folder} was made with another {part} ({_short(made_from.get(part))}, needed is "
                f"{_short(value)}): run `dvc repro cache@{name}`"
            )
    if cached_views == "online":
        tqdm.write(f"{folder}: the teacher runs along, on the {device.type}")
        return Online(load_classifier(model, device), "maps" in parts)
    if "maps" in parts:
        raise InputError(f"{folder} is a table and has no feature maps: set cache.{name}: online")
    if top_k and "logits" in parts:
        parts = [*parts, "classes"]
    shape = made_from["shape"]
    shards = Shards(
        {part: _mapped(folder, part) for part in parts},
        shape["views"],
        shape["images"],
        shape["classes"],
    )
    table = put_on_device(shards, device)
    way = "streamed from the disk" if isinstance(table, Streamed) else f"on the {device.type}"
    tqdm.write(f"{folder}: {shards.nbytes / 1e6:,.1f} MB of {' and '.join(parts)}, {way}")
    return table


def put_on_device(shards: Shards, device: torch.device) -> Table:
    """The table on the device, or streamed to it.

    On a GPU the table is whole where that leaves half of its free memory; on a CPU where one file
    holds a part, which is mapped: what is never looked up takes no memory.
    """
    if device.type == "cpu":
        whole = all(len(part) == 1 for part in shards.parts.values())
    else:
        whole = shards.nbytes <= free_memory(device) / 2
    if not whole:
        return Streamed(shards, device)
    parts = {}
    for name, (first, *more) in shards.parts.items():
        if more:  # not torch.cat, which takes as much memory again
            rows_in_all = shards.views * shards.images
            table = first.new_empty(rows_in_all, first.shape[-1], device=device)
            for rows, shard in zip(table.split(len(first)), shards.parts[name]):
                rows.copy_(shard)
        else:
            table = first.to(device)
        parts[name] = table.view(shards.views, shards.images, -1)
    return Table(parts, shards.num_classes)


def _mapped(folder: Path, part: str) -> list[torch.Tensor]:
    """The shards of a part in order, mapped from the disk."""
    paths = sorted(folder.glob(f"{part}-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    return [torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
