"""What every teacher answers, whichever kind it is; losses do not know which they have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from richkd.base.vectors import unit

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet


class Teacher(ABC):
    """Looked up by images and views: `ids` (B,) and `view_ids` (B,), int64, on the device."""

    has_maps = False  # whether `maps` answers

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """D of `features`."""

    @abstractmethod
    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, C) float32, up to a constant a row."""

    @abstractmethod
    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, D) float32."""

    def maps(self, ids: Tensor, view_ids: Tensor) -> tuple[Tensor, ...]:
        """The maps after each stage of the network, (B, channels, height, width) float32 each."""
        raise NotImplementedError(f"{type(self).__name__} has no feature maps")

    def embedder(self, dim: int) -> nn.Module:
        """A head to learn: called with ids and view_ids, it returns unit rows (B, dim)."""
        return Embedder(self, dim)

    def reader(self, data: ResidentSet | FileSet) -> Teacher:
        """The teacher for one training run, whose images are `data`."""
        return self

    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The epoch begins whose batches are these (ids, view_ids)."""
        return

    def next_batch(self) -> None:
        """The next of the epoch's batches begins."""
        return


class Embedder(nn.Module):
    """A linear layer on a teacher's features, then L2 norm."""

    def __init__(self, teacher: Teacher, dim: int):
        super().__init__()
        self.teacher, self.head = teacher, nn.Linear(teacher.feature_dim, dim)

    def forward(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return unit(self.head(self.teacher.features(ids, view_ids)))
