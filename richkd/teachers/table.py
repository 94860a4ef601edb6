"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits-000.npy`, `-001`, … hold the rows of (V · N, C), `features-…` those of (V · N, D),
float16 and at most 256 MB a file: V views (all, or the centre alone) of N images, views outermost.
Beside them `cache.json` says what they were made from. A row of logits is stored less its largest,
where 16 bits are finest; every softmax of it, and of a mixture, stays the same. But for that
rounding a lookup gives what the teacher gives for the augmented image. `validation.npy` (M, C),
float32, is its logits on the validation images as they are. `richkd.teachers.caching` makes all these.

With top_k a row of logits is the k largest in falling order and, last, what all others share: the
logarithm of the mean of their exponentials; `classes-…`, int16 or int32, are those of the k. A lookup
gives all C again, the others equal. A loss then sees a teacher that spreads what it leaves to the
rest evenly: at temperature 1 the k probabilities and the rest's sum are the teacher's own, at a
higher one the rest's sum is larger than the teacher's.

A teacher that is online has no rows: it runs along on the batch at hand (`Online`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet


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
