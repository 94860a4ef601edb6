"""The fused teacher: the conventional classifier and CLIP, opened and mixed by a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd.teachers.fusion import Recipe, fuse_features
from richkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet


class Fused(Teacher):
    """Mixes what both teachers answer for the same views."""

    def __init__(
        self, recipe: Recipe, teacher: Teacher, clip: Teacher, device: torch.device | None = None
    ):
        """`device` is where the teachers' answers are."""
        self.recipe, self.teacher, self.clip = recipe, teacher, clip
        # Made once: a copy to the GPU in every step would make the host wait, and a CUDA graph
        # cannot hold such a copy.
        self.class_alphas = torch.tensor(recipe.class_alphas, device=device)

    @property
    def feature_dim(self) -> int:
        return self.teacher.feature_dim + self.clip.feature_dim

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """z_F of `richkd.teachers.fusion.fuse_logits`."""
        both = self.teacher.logits(ids, view_ids), self.clip.logits(ids, view_ids)
        return self.recipe.mix(*both, self.class_alphas)

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """Unit features of both, side by side, times √λ and √(1-λ): (B, D_T + D_C).

        The inner product of two such rows is the λ-mixture of both teachers' cosines, which is what
        losses on relations between images compare.
        """
        shares = self.recipe.lam, 1 - self.recipe.lam
        both = self.teacher.features(ids, view_ids), self.clip.features(ids, view_ids)
        return torch.cat(
            [math.sqrt(share) * F.normalize(x, dim=1) for share, x in zip(shares, both)], dim=1
        )

    def embedder(self, dim: int) -> nn.Module:
        """A head for each teacher, mixed by λ and normalised, as the paper has f_F."""
        return FusedEmbedder(self, dim)

    def reader(self, data: ResidentSet | FileSet) -> Fused:
        both = self.teacher.reader(data), self.clip.reader(data)
        return Fused(self.recipe, *both, self.class_alphas.device)

    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.teacher.begin_epoch(batches)
        self.clip.begin_epoch(batches)

    def next_batch(self) -> None:
        self.teacher.next_batch()
        self.clip.next_batch()


class FusedEmbedder(nn.Module):
    """The heads of both teachers, mixed by λ, then L2 norm."""

    def __init__(self, fused: Fused, dim: int):
        super().__init__()
        self.teacher, self.clip = fused.teacher.embedder(dim), fused.clip.embedder(dim)
        self.lam = fused.recipe.lam

    def forward(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return fuse_features(self.teacher(ids, view_ids), self.clip(ids, view_ids), self.lam)
