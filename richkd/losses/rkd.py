"""Relational knowledge distillation."""

import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_same, check_weight


def rkd(student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """Relational KD: distances between pairs of samples and angles in triplets, smooth L1.

    Park et al., "Relational Knowledge Distillation", CVPR 2019. Features (batch, d_student) and
    (batch, d_teacher), floating; returns a scalar, 0 for a batch of one. Memory grows with
    batch³ and batch²·d. Raises ValueError where the batches differ or a weight is negative.
    """
    check_weight("distance_weight", distance_weight)
    check_weight("angle_weight", angle_weight)
    check_same("batch size", len(student), len(teacher))
    student_distance, student_angle = _relations(student)
    teacher_distance, teacher_angle = _relations(teacher)
    distance = F.smooth_l1_loss(student_distance, teacher_distance)
    angle = F.smooth_l1_loss(student_angle, teacher_angle)
    return distance_weight * distance + angle_weight * angle


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (batch, batch) over their mean, and cosines (batch, batch, batch) at vertices."""
    difference = features[None] - features[:, None]
    distance = difference.norm(dim=2)
    pairs = max(len(features) * (len(features) - 1), 1)
    mean = (distance.sum() / pairs).clamp_min(1e-12)  # 0 where all features are one point
    # Two equal samples have no direction. Theirs is 0 here, with a gradient that stays small;
    # F.normalize would divide by its epsilon and give a gradient of 1e12.
    unit = difference / distance.masked_fill(distance == 0, 1)[:, :, None]
    return distance / mean, unit @ unit.mT
