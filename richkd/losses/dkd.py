"""Decoupled knowledge distillation."""

import torch
import torch.nn.functional as F

from richkd.losses.check import check_positive, check_same, kl


def dkd(student, teacher, target, alpha, beta, temperature):
    """Decoupled KD: alpha·TCKD + beta·NCKD.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022. Logits (batch, classes), target
    (batch,) int64; returns a scalar. TCKD compares the target class with all others together,
    NCKD the distribution among the others. Raises ValueError where the shapes differ or
    temperature is not positive.
    """
    check_positive("temperature", temperature)
    check_same("shape of the logits", tuple(student.shape), tuple(teacher.shape))
    student_pair, student_rest = _decouple(student / temperature, target)
    teacher_pair, teacher_rest = _decouple(teacher / temperature, target)
    loss = alpha * kl(student_pair, teacher_pair) + beta * kl(student_rest, teacher_rest)
    return loss * temperature**2


def _decouple(logits, target):
    """Log-probabilities (batch, 2) of target and not, and (batch, classes-1) among the others."""
    target = target[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)
    log_probability = F.log_softmax(logits, dim=1)
    # log(1 - p) through the sum of the others: it stays exact where p rounds to 1.
    rest = log_probability.gather(1, others).logsumexp(dim=1, keepdim=True)
    pair = torch.cat([log_probability.gather(1, target), rest], dim=1)
    return pair, F.log_softmax(logits.gather(1, others), dim=1)
