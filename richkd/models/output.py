"""What a classifier returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class ModelOutput(NamedTuple):
    """Logits (N, classes) and the pooled vector before the classifier (N, feature_dim)."""

    logits: Tensor
    features: Tensor
