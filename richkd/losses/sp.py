"""Similarity-preserving knowledge distillation."""

import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_same


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity preserving: mean squared difference of the row-normalised Gram matrices.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. Features or maps
    (batch, …), floating, which may differ in all but the batch; returns a scalar. Raises ValueError
    where the batches differ.
    """
    check_same("batch size", len(student), len(teacher))
    return F.mse_loss(_gram(student), _gram(teacher))


def _gram(features: Tensor) -> Tensor:
    """Inner products of all pairs of samples (batch, batch), each row with norm 1."""
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)
