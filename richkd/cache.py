"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits-000.npy`, `-001`, … hold the rows of (V · N, C), `features-…` those of (V · N, D),
float16 and at most 256 MB a file: V views (all, or the centre alone) of N images, views outermost.
Beside them `cache.json` says what they were made from. A row of logits is stored less its largest,
where 16 bits are finest; every softmax of it, and of a mixture, stays the same. But for that
rounding a lookup gives what the teacher gives for the augmented image. `validation.npy` (M, C),
float32, is its logits on the validation images as they are. `richkd.caching` makes all these.

With top_k a row of logits is the k largest in falling order and, last, what all others share: the
logarithm of the mean of their exponentials; `classes-…`, int16 or int32, are those of the k. A lookup
gives all C again, the others equal. A loss then sees a teacher that spreads what it leaves to the
rest evenly: at temperature 1 the k probabilities and the rest's sum are the teacher's own, at a
higher one the rest's sum is larger than the teacher's.

A teacher that is online has no rows: it runs along on the batch at hand (`Online`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from richkd import weights
from richkd.engine import ResidentSet, autocast, free_memory
from richkd.errors import InputError
from richkd.files import read_json, sha256
from richkd.models import ModelOutput
from richkd.views import RandomResizedCrop, Views

if TYPE_CHECKING:  # torchvision takes a second
    from richkd.imagesets import FileSet

ViewSet = Views | RandomResizedCrop

TRAIN = "data/train.safetensors"
AHEAD = 4  # batches gathered while the device works on the one before


class Table:
    """A cache that lies whole on the device; on a CPU, mapped from the disk."""

    def __init__(
        self,
        logits: Tensor | None = None,
        features: Tensor | None = None,
        classes: Tensor | None = None,
        num_classes: int | None = None,
    ):
        """(V, N, C) and (V, N, D), V 1 for one that answers for every view; None is never asked.

        With `classes` (V, N, k), logits are (V, N, k + 1), of `num_classes`.
        """
        parts = {"logits": logits, "features": features, "classes": classes}
        self.parts = {name: x for name, x in parts.items() if x is not None}
        self.num_classes = num_classes

    @property
    def feature_dim(self) -> int:
        return self.parts["features"].shape[-1]

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, C) float32 for images `ids` (B,) in views `view_ids` (B,), up to a constant a row."""
        rows = self._lookup("logits", ids, view_ids).float()
        if "classes" not in self.parts:
            return rows
        largest = self._lookup("classes", ids, view_ids).long()
        every = rows[:, -1:].repeat(1, self.num_classes)  # what all but the largest share
        return every.scatter_(1, largest, rows[:, :-1])

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, D) float32 for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("features", ids, view_ids).float()

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        table = self.parts[part]
        return table[0, ids] if len(table) == 1 else table[view_ids, ids]

    def reader(self, data: ResidentSet | FileSet) -> Table:
        """What one training run, whose images `data` has, looks up from."""
        return self

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of the epoch that begins."""

    def advance(self) -> None:
        """The next of these batches begins."""


class Streamed(Table):
    """A cache that stays on the disk: rows are gathered ahead of the batches and sent after.

    It answers for the batch that has begun alone, and always from the same memory, as a CUDA graph
    needs it. A part is its shards, (rows, width) each; `images` is N, None where the centre
    answers for every view.
    """

    def __init__(
        self,
        shards: dict[str, list[Tensor]],
        images: int | None,
        device: torch.device,
        num_classes: int | None = None,
    ):
        super().__init__(num_classes=num_classes)
        self.parts, self.images, self.device = shards, images, device
        self.pool = ThreadPoolExecutor(1)
        self.rows: dict[str, Tensor] = {}

    @property
    def feature_dim(self) -> int:
        return self.parts["features"][0].shape[-1]

    def reader(self, data: ResidentSet | FileSet) -> Streamed:
        """Each run has its own batches."""
        return Streamed(self.parts, self.images, self.device, self.num_classes)

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.rows:
            longest = len(batches[0][0])
            self.rows = {
                name: torch.empty(longest, x.shape[-1], dtype=x.dtype, device=self.device)
                for name, (x, *_) in self.parts.items()
            }
        # All at once: each would make the host wait for the device.
        lengths = [len(ids) for ids, _ in batches]
        both = (torch.cat(part).cpu().split(lengths) for part in zip(*batches))
        self.batches: Iterator[tuple[Tensor, Tensor]] = zip(*both)
        self.gathered: deque[Future[dict[str, Tensor]]] = deque()
        for _ in range(AHEAD):
            self._gather_next()

    def advance(self) -> None:
        for name, rows in self.gathered.popleft().result().items():
            self.rows[name][: len(rows)].copy_(rows, non_blocking=True)
        self._gather_next()

    def _gather_next(self) -> None:
        if batch := next(self.batches, None):
            self.gathered.append(self.pool.submit(self._gather, *batch))

    def _gather(self, ids: Tensor, view_ids: Tensor) -> dict[str, Tensor]:
        rows = ids if self.images is None else view_ids * self.images + ids
        gathered = {}
        for name, shards in self.parts.items():
            first = shards[0]
            pin = self.device.type == "cuda"
            out = first.new_empty(len(rows), first.shape[-1], pin_memory=pin)
            if len(shards) == 1:
                torch.index_select(first, 0, rows, out=out)
            else:
                shard, within = rows // len(first), rows % len(first)
                for number in shard.unique().tolist():
                    here = shard == number
                    out[here] = shards[number][within[here]]
            gathered[name] = out
        return gathered

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.rows[part][: len(ids)]


class Online(Table):
    """A frozen teacher that runs on each batch, as the student sees it; on a GPU in bf16."""

    def __init__(self, loaded: weights.Loaded, data: ResidentSet | FileSet | None = None):
        super().__init__()
        self.loaded, self.data = loaded, data
        self.output: ModelOutput | None = None
        if data is not None:  # the batch is normalised for the student
            mean, std = (torch.tensor(x, device=data.device) for x in (loaded.mean, loaded.std))
            own_mean, own_std = (torch.tensor(x, device=data.device) for x in (data.mean, data.std))
            self.scale = (own_std / std).view(3, 1, 1)
            self.shift = ((own_mean - mean) / std).view(3, 1, 1)

    @property
    def feature_dim(self) -> int:
        return self.loaded.model.feature_dim

    def reader(self, data: ResidentSet | FileSet) -> Online:
        """It sees what the run sees."""
        return Online(self.loaded, data)

    def advance(self) -> None:
        self.output = None

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        if self.output is None:  # once for both parts
            on_gpu = self.data.device.type == "cuda"
            with torch.no_grad(), autocast(self.data.device, "bf16" if on_gpu else "fp32"):
                images = self.data.batch(ids, view_ids) * self.scale + self.shift
                self.output = self.loaded.model(images)
        return getattr(self.output, part)


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


def identity(model: Path, views: ViewSet, held: str, top_k: int | None, **more: Any) -> dict[str, Any]:
    """What a cache is made from: by name, what makes it useless when it changes.

    `model` is the path of the teacher's weights without its suffix, `held` is `all`, `center` or
    `online`, `more` is what else shapes the outputs.
    """
    record = read_json(f"{model}.json")
    return {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "input of the teacher": {key: record.get(key) for key in ("mean", "std", "center", "input")},
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
        return Online(weights.load_classifier(model, device))
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
