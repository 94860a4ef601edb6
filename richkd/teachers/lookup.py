"""A teacher by its name: found in `cache/<name>`, checked, and made ready for lookups."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import ConfigDict, Field, FiniteFloat, with_config
from torch import Tensor
from tqdm import tqdm
from typing_extensions import TypedDict

from richkd.base.errors import InputError
from richkd.base.files import sha256
from richkd.base.records import read_array, read_json
from richkd.classifiers import load_classifier, load_record
from richkd.data.views import RandomResizedCrop, Views
from richkd.engine import free_memory
from richkd.model_records import paths
from richkd.params import Control
from richkd.teachers.controls import with_control
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import FUSED, load_recipe, table_fingerprints
from richkd.teachers.online import Online
from richkd.teachers.table import Shards, Streamed, Table
from richkd.teachers.teacher import Teacher

ViewSet = Views | RandomResizedCrop

CACHE = Path("cache")
TRAIN = "data/train.safetensors"


Count = Annotated[int, Field(ge=0)]


@with_config(ConfigDict(extra="allow"))
class ViewsHeld(TypedDict):
    """Of `TableRecord`: which views a table has; beside this all that they follow from."""

    held: Literal["all", "center", "online"]


class TableShape(TypedDict):
    """Of `TableRecord`: views and images, and the classes of the logits."""

    views: Count
    images: Count
    classes: Annotated[int, Field(ge=1)]


# `cache/<name>/cache.json`: what `identity` returns, and what `richkd.teachers.caching` adds.
# `content` has the hash of each array in the folder by its file's name.
TableRecord = TypedDict(
    "TableRecord",
    {
        "set of views": ViewsHeld,
        "top k": Annotated[int, Field(ge=1)] | None,
        "shape": TableShape,
        "content": dict[str, str],
        "logit scale": NotRequired[Annotated[FiniteFloat, Field(gt=0)]],  # CLIP's alone
    },
)
with_config(ConfigDict(extra="allow"))(TableRecord)
# The dtypes of a table's parts, and of the teacher's logits on the validation images.
DTYPES = {"logits": "float16", "features": "float16", "classes": "int16 int32"}


def identity(model: Path, views: ViewSet, cached_views: str, top_k: int | None) -> dict[str, Any]:
    """What a table is made from, by name: if any of these changes, the table is out of date.

    `model` is the path of the teacher's weights without its suffix; `cached_views` is `all`,
    `center` or `online`.
    """
    record = load_record(model)
    keys = ("mean", "std", "center", "input")
    parts: dict[str, Any] = {
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
    teacher, clip = (_open_one(x, views, device, parts) for x in ("teacher", "clip"))
    return Fused(recipe, teacher, clip, device)


def open_control(fused: Fused, control: Control, labels: Tensor) -> Fused:
    """The fused teacher with the control in it; labels int64 (N,), on the teacher's device."""
    scale = read_json(CACHE / "clip/cache.json", TableRecord)["logit scale"]
    return with_control(fused, control, scale, labels)


def _open_one(name: str, views: ViewSet, device: torch.device, parts: Sequence[str]) -> Teacher:
    folder = CACHE / name
    (model,) = paths(f"models/{name}")
    made_from = read_json(folder / "cache.json", TableRecord)
    cached_views, top_k = made_from["set of views"]["held"], made_from["top k"]
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
    mapped = {part: _mapped(folder, part, made_from) for part in parts}
    shards = Shards(mapped, shape["views"], shape["images"], shape["classes"])
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


def _mapped(folder: Path, part: str, record: dict[str, Any]) -> list[Tensor]:
    """The shards of a part in order, mapped from the disk.

    InputError names one that is missing, damaged, or not as the table's record has it.
    """
    names = [name for name in record["content"] if re.fullmatch(rf"{part}-\d+\.npy", name)]
    shape, top_k = record["shape"], record["top k"]
    width = {"logits": top_k + 1 if top_k else shape["classes"], "classes": top_k}.get(part)
    # A table is mapped, not read: what is never looked up takes no memory, nor any time.
    shards = [
        torch.from_numpy(read_array(folder / name, DTYPES[part], (None, width), "c", finite=False))
        for name in sorted(names, key=lambda name: int(name[len(part) + 1 : -4]))
    ]
    lengths = [len(shard) for shard in shards]
    rows = shape["views"] * shape["images"]
    # All but the last are of one length: a row's number says in which it is.
    whole = sum(lengths) == rows and lengths == sorted(lengths, reverse=True)
    if not whole or len(set(lengths[:-1])) > 1 or len({x.shape[1] for x in shards}) != 1:
        raise InputError(
            f"{folder} has not the {rows} rows of {part} that its cache.json says: "
            f"run `dvc repro cache@{folder.name}`"
        )
    if part == "classes" and not all(0 <= x.min() <= x.max() < shape["classes"] for x in shards):
        raise InputError(f"{folder}: classes beyond the {shape['classes']} there are")
    return shards


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
