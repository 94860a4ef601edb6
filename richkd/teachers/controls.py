"""Controls: the fused teacher without one property of CLIP's logits, to see what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from richkd.teachers.fused import Fused
from richkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet
    from richkd.params import Control

Change = Callable[[Tensor, Tensor], Tensor]  # logits (B, C) and ids (B,) to logits


def with_control(fused: Fused, control: Control, scale: float, labels: Tensor) -> Fused:
    """The fused teacher with CLIP's logits changed; its features stay the same.

    `scale` is the factor from CLIP's cosines to its logits. `labels`, int64 (N,), are those of all
    training images, on the teacher's device. With `cosines`, CLIP's logits are divided by `scale`.
    With `shuffled`, they are those of `shuffle`.
    """

    def cosines(logits: Tensor, ids: Tensor) -> Tensor:
        return logits / scale

    def shuffled(logits: Tensor, ids: Tensor) -> Tensor:
        return shuffle(logits, ids, labels[ids])

    change = {"cosines": cosines, "shuffled": shuffled}[control]
    device = fused.class_alphas.device
    return Fused(fused.recipe, fused.teacher, Changed(fused.clip, change), device)


def shuffle(logits: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Each row of logits (B, C) in another order; only the logit of the row's label stays.

    The order follows from the image's id alone, so it is the same in every epoch and for every
    seed. The probability of the right class stays, and so do the other probabilities as a set;
    which of the other classes have which probability is lost.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    own = labels[:, None]
    keys = _mixed(ids[:, None] * logits.shape[1] + classes)
    # For each row the other classes in random order. The largest key puts the label last.
    sources = keys.scatter(1, own, torch.iinfo(torch.int64).max).argsort(1)
    # The other classes in rising order: numbers from the label on move up by one.
    others = classes + (classes >= own)
    targets = torch.where(classes == len(classes) - 1, own, others)
    return logits.scatter(1, targets, logits.gather(1, sources))


def _mixed(numbers: Tensor) -> Tensor:
    """A hash of each int64, like the last steps of MurmurHash3; its products overflow."""
    for factor in (-0x00AE502812AA7333, -0x3B314601E57A13AD):
        numbers = (numbers ^ (numbers >> 33)) * factor
    return numbers


class Changed(Teacher):
    """A teacher whose logits `change` replaces; its features stay the same."""

    def __init__(self, teacher: Teacher, change: Change):
        self.teacher, self.change = teacher, change

    @property
    def feature_dim(self) -> int:
        return self.teacher.feature_dim

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.change(self.teacher.logits(ids, view_ids), ids)

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.teacher.features(ids, view_ids)

    def embedder(self, dim: int) -> nn.Module:
        return self.teacher.embedder(dim)

    def reader(self, data: ResidentSet | FileSet) -> Changed:
        return Changed(self.teacher.reader(data), self.change)

    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.teacher.begin_epoch(batches)

    def next_batch(self) -> None:
        self.teacher.next_batch()
