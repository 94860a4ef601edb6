"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits-000.npy`, `-001`, … hold the rows of (V · N, C), `features-…` those of (V · N, D),
float16 and at most 256 MB a file: V views (all, or the centre alone) of N images, views outermost.
Beside them `cache.json` says what the table was made from. A row of logits is stored less its
largest, where 16 bits are finest; every softmax of the row, and of a mixture with it, stays the
same. But for that rounding a lookup gives what the teacher gives for the augmented image.
`validation.npy` (M, C), float32, has the teacher's logits on the validation images as they are.
`richkd.teachers.caching` makes all these files.

With top_k a row of logits holds the k largest in falling order and, last, one number for all other
classes: the logarithm of the mean of their exponentials. `classes-…`, int16 or int32, says which
classes the k are. A lookup gives all C logits again, those of the other classes equal. A loss then
sees a teacher that gives the other classes equal shares: at temperature 1 the k probabilities, and
the sum of the others, are the teacher's own; at a higher temperature that sum is larger than the
teacher's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from richkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet

AHEAD = 4  # batches gathered while the device works on the one before


class Table(Teacher):
    """A table that lies whole on the device; on a CPU, mapped from the disk."""

    def __init__(self, parts: dict[str, Tensor], num_classes: int):
        """`parts` are the tensors that will be looked up, by name, V views of N images each.

        logits (V, N, C), features (V, N, D); V is 1 where one view answers for all. With
        classes (V, N, k) the logits are (V, N, k + 1), of `num_classes`.
        """
        self.parts, self.num_classes = parts, num_classes

    @property
    def feature_dim(self) -> int:
        return self.parts["features"].shape[-1]

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        rows = self._rows("logits", ids, view_ids).float()
        if "classes" not in self.parts:
            return rows
        largest = self._rows("classes", ids, view_ids).long()
        every = rows[:, -1:].repeat(1, self.num_classes)  # the last is what all others share
        return every.scatter_(1, largest, rows[:, :-1])

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self._rows("features", ids, view_ids).float()

    def _rows(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        table = self.parts[part]
        return table[0, ids] if len(table) == 1 else table[view_ids, ids]


class Shards:
    """The files of a table, as one list of tensors (rows, width) a part, and how to read a row.

    `views` views of `images` images, views outermost.
    """

    def __init__(self, parts: dict[str, list[Tensor]], views: int, images: int, num_classes: int):
        self.parts, self.views, self.images, self.num_classes = parts, views, images, num_classes

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for part in self.parts.values() for x in part)

    def gather(self, ids: Tensor, view_ids: Tensor, pin: bool) -> dict[str, Tensor]:
        """The rows of a batch, ids and view_ids on the CPU; in pinned memory with `pin`."""
        rows = view_ids * self.images + ids if self.views > 1 else ids
        gathered = {}
        for name, shards in self.parts.items():
            first = shards[0]
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


class Streamed(Table):
    """A table that stays on the disk: rows are gathered ahead of the batches and sent after.

    It answers for the batch that has begun alone, and always from the same memory, as a CUDA graph
    needs it.
    """

    def __init__(self, shards: Shards, device: torch.device):
        super().__init__({}, shards.num_classes)
        self.shards, self.device = shards, device
        self.pool = ThreadPoolExecutor(1)

    @property
    def feature_dim(self) -> int:
        return self.shards.parts["features"][0].shape[-1]

    def reader(self, data: ResidentSet | FileSet) -> Streamed:
        """Each run has its own batches."""
        return Streamed(self.shards, self.device)

    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.parts:
            longest = len(batches[0][0])
            self.parts = {
                name: torch.empty(longest, x.shape[-1], dtype=x.dtype, device=self.device)
                for name, (x, *_) in self.shards.parts.items()
            }
        # All at once: a copy for each batch would make the host wait for the device each time.
        lengths = [len(ids) for ids, _ in batches]
        ids, view_ids = (torch.cat(part).cpu().split(lengths) for part in zip(*batches))
        self.batches: Iterator[tuple[Tensor, Tensor]] = zip(ids, view_ids)
        self.gathered: deque[Future[dict[str, Tensor]]] = deque()
        for _ in range(AHEAD):
            self._gather_next()

    def next_batch(self) -> None:
        for name, rows in self.gathered.popleft().result().items():
            self.parts[name][: len(rows)].copy_(rows, non_blocking=True)
        self._gather_next()

    def _gather_next(self) -> None:
        if batch := next(self.batches, None):
            pin = self.device.type == "cuda"
            self.gathered.append(self.pool.submit(self.shards.gather, *batch, pin))

    def _rows(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.parts[part][: len(ids)]
