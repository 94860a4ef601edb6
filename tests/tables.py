"""Tables of small teachers, made and read whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from richkd.data.imagesets import FileSet
from richkd.data.resident import ResidentSet
from richkd.teachers import caching
from richkd.teachers.table import Table

PARTS = ("logits", "features", "classes")
VALIDATION = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(
    name: str,
    teacher: nn.Module,
    data: ResidentSet | FileSet,
    view_ids: Sequence[int] = range(18),
    top_k: int | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Make `cache/<name>` in batches of four; `more` are made_from and key, if they matter."""
    inputs = caching.Inputs(data, view_ids, VALIDATION)
    settings = caching.Settings(4, "fp32", top_k)
    described = {"made_from": {}, "key": "key"} | more
    return caching.build(f"cache/{name}", teacher, inputs, settings, **described)


def shards(name: str, part: str) -> list[npt.NDArray[Any]]:
    """The files of a part, in order."""
    return [np.load(path) for path in sorted(Path(f"cache/{name}").glob(f"{part}-*.npy"))]


def table(name: str, num_classes: int = 4) -> Table:
    """The table of the 22 images, whole in memory."""
    parts = {part: shards(name, part) for part in PARTS}
    rows = {part: torch.from_numpy(np.concatenate(x)) for part, x in parts.items() if x}
    views = {part: x.view(-1, 22, x.shape[1]) for part, x in rows.items()}
    return Table(views, num_classes)
