"""What a classifier returns."""

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """Logits (N, classes) and the pooled vector before the classifier (N, feature_dim)."""

    logits: Tensor
    features: Tensor
