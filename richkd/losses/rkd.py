"""Relational knowledge distillation."""

import torch.nn.functional as F

from richkd.losses.check import check_same


def rkd(student, teacher, distance_weight, angle_weight):
    """Relational KD: distances between pairs of samples and angles in triplets, smooth L1.

    Park et al., "Relational Knowledge Distillation", CVPR 2019. Features (batch, d_student) and
    (batch, d_teacher), floating; returns a scalar, 0 for a batch of one. Memory grows with
    batch³ and batch²·d. Raises ValueError where the batches differ.
    """
    check_same("batch size", len(student), len(teacher))
    student_distance, student_angle = _relations(student)
    teacher_distance, teacher_angle = _relations(teacher)
    distance = F.smooth_l1_loss(student_distance, teacher_distance)
    angle = F.smooth_l1_loss(student_angle, teacher_angle)
    return distance_weight * distance + angle_weight * angle


def _relations(features):
    """Distances (batch, batch) over their mean, and cosines (batch, batch, batch) at vertices."""
    difference = features[None] - features[:, None]
    distance = difference.norm(dim=2)
    pairs = max(len(features) * (len(features) - 1), 1)
    mean = (distance.sum() / pairs).clamp_min(1e-12)  # features may have collapsed to one point
    # Two equal samples have no direction: 0, with a finite gradient where F.normalize gives 1e12.
    unit = difference / distance.masked_fill(distance == 0, 1)[:, :, None]
    return distance / mean, unit @ unit.mT
