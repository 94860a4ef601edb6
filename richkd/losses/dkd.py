"""Decoupled knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_logits, check_positive, check_weight, kl


def dkd(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Decoupled KD: alpha·TCKD + beta·NCKD.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022. Logits (batch, classes), floating,
    target (batch,) int64; returns a scalar. TCKD compares the target class with all others
    together, NCKD compares the distributions among the others. Raises ValueError where the shapes
    differ, temperature is not positive, or alpha or beta is negative.
    """
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    check_positive("temperature", temperature)
    check_logits(student, teacher)
    student_pair, student_rest = _decouple(student / temperature, target)
    teacher_pair, teacher_rest = _decouple(teacher / temperature, target)
    target_class = kl(student_pair, teacher_pair, alpha * temperature**2)
    return target_class + kl(student_rest, teacher_rest, beta * temperature**2)


def _decouple(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and not target (batch, 2), and among the others (batch, C-1)."""
    target = target[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)
    log_probability = F.log_softmax(logits, dim=1)
    # log(1 - p) as the log of the sum of the others: exact even where p rounds to 1.
    rest = log_probability.gather(1, others).logsumexp(dim=1, keepdim=True)
    pair = torch.cat([log_probability.gather(1, target), rest], dim=1)
    return pair, F.log_softmax(logits.gather(1, others), dim=1)
