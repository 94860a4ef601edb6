"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits.npy` (V, N, C) and `features.npy` (V, N, D), float32, V the views held (all, or the
centre alone), beside `cache.json`, which says what they were made from. A lookup gives what the
teacher gives for the augmented image; nothing is approximated. `validation.npy` (M, C) is its
logits on the validation images as they are.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd import weights
from richkd.engine import ResidentSet, predict
from richkd.errors import InputError
from richkd.files import read_json, sha256, write_json
from richkd.resume import FOLDER
from richkd.views import Views

TRAIN = "data/train.safetensors"
TABLES = ("logits", "features")
SAVE_EVERY = 5.0  # seconds; flushing takes a tenth of one


class Table:
    """A cache, each part of it brought to the device when first looked up there."""

    def __init__(self, logits: Tensor, features: Tensor):
        self._parts = {"logits": logits, "features": features}
        self.feature_dim = features.shape[-1]

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, C) for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("logits", ids, view_ids)

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, D) for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("features", ids, view_ids)

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        table = self._parts[part] = self._parts[part].to(ids.device)
        return table[0, ids] if len(table) == 1 else table[view_ids, ids]


def identity(model: Path, views: Views, held: str, **more: Any) -> dict[str, Any]:
    """What a cache is made from: by name, what makes it useless when it changes.

    `model` is the path of the teacher's weights without its suffix, `held` is `all` or `center`,
    `more` is what else shapes the outputs.
    """
    return {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "set of views": {"pad": views.pad, "flip": views.flip, "held": held},
        **{name.replace("_", " "): value for name, value in more.items()},
    }


def of(name: str, views: Views, held: str, **more: Any) -> Table:
    """The cache of `models/<name>`; InputError names what it was made from if that is not so now.

    Arguments as for `identity`.
    """
    folder = Path("cache") / name
    (model,) = weights.paths(f"models/{name}")
    made_from = read_json(folder / "cache.json")
    for part, needed in identity(model, views, held, **more).items():
        if made_from.get(part) != needed:
            raise InputError(
                f"{folder} was made with another {part} ({_short(made_from.get(part))}, needed is "
                f"{_short(needed)}): make it again"
            )
    # Mapped, so that what a variant never looks up, such as kd the features, takes no memory.
    arrays = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in TABLES)
    return Table(*map(torch.from_numpy, arrays))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allocate(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array on disk, with all its space taken: a full disk is an OSError now."""
    table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return table


def build(
    folder: Path | str,
    model: nn.Module,
    data: ResidentSet,
    view_ids: Sequence[int],
    validation: Tensor,
    batch_size: int,
    precision: str,
    made_from: dict[str, Any],
    key: str,
) -> tuple[Tensor, Tensor]:
    """Run `model` on the views of every image; goes on where a killed run of this `key` stopped.

    `validation` is normalised images (M, 3, H, W); `made_from` comes from `identity`. Returns the
    logits (M, C) and features (M, D) of the validation images.
    """
    work = FOLDER / f"cache-{Path(folder).name}"
    progress_file = work / "progress.json"
    tables: dict[str, np.ndarray] = {}
    starts = range(0, len(data), batch_size)
    shards = [(view, start) for view in range(len(view_ids)) for start in starts]
    done = 0
    if progress_file.exists() and (progress := read_json(progress_file))["key"] == key:
        done = progress["done"]
        tables = {name: np.load(work / f"{name}.npy", mmap_mode="r+") for name in TABLES}
        tqdm.write(f"going on from {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    bar = tqdm(total=len(shards) * batch_size, initial=done * batch_size, desc=str(folder), unit="image")
    saved = time.monotonic()
    for view, start in shards[done:]:
        ids = torch.arange(start, min(start + batch_size, len(data)), device=data.device)
        views = torch.full_like(ids, view_ids[view])
        outputs = predict(model, data.batch(ids, views), batch_size, precision)
        for name, rows in zip(TABLES, outputs):
            if name not in tables:
                shape = (len(view_ids), len(data), rows.shape[1])
                tables[name] = _allocate(work / f"{name}.npy", shape)
            tables[name][view, start : start + len(rows)] = rows.cpu().numpy()
        done += 1
        if time.monotonic() - saved >= SAVE_EVERY:
            for table in tables.values():
                table.flush()
            write_json(progress_file, {"key": key, "done": done})
            saved = time.monotonic()
        bar.update(batch_size)
    bar.close()
    tables.clear()
    logits, features = predict(model, validation, batch_size, precision)
    np.save(work / "validation.npy", logits.cpu().numpy())
    progress_file.unlink(missing_ok=True)
    write_json(work / "cache.json", made_from)
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    work.rename(folder)
    return logits, features
