"""Similarity-preserving knowledge distillation."""

import torch.nn.functional as F

from richkd.losses.check import check_same


def sp(student, teacher):
    """Similarity preserving: mean squared difference of the row-normalised Gram matrices.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. Features or maps
    (batch, …), floating; returns a scalar. Raises ValueError where the batches differ.
    """
    check_same("batch size", len(student), len(teacher))
    return F.mse_loss(_gram(student), _gram(teacher))


def _gram(features):
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)
