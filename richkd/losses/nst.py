"""Neuron selectivity transfer."""

import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_maps


def nst(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Neuron selectivity transfer: squared MMD between channels, polynomial kernel of degree 2.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
    MMD is the maximum mean discrepancy. Maps of one stage (batch, channels, height, width),
    floating, channels may differ; returns a scalar. Raises ValueError where batch, height or width
    differ.
    """
    check_maps(student_map, teacher_map)
    student = F.normalize(student_map.flatten(2), dim=2)
    teacher = F.normalize(teacher_map.flatten(2), dim=2)
    own = _kernel(student, student) + _kernel(teacher, teacher)
    return own - 2 * _kernel(student, teacher)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """The mean over the batch and all pairs of channels of the kernel, an inner product squared."""
    return (first @ second.mT).square().mean()
