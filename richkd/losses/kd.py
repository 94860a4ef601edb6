"""Knowledge distillation by softened logits."""

import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_logits, check_positive, kl
from richkd.losses.standardize import standardize as standardize_logits


def kd(student: Tensor, teacher: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. Both (batch, classes),
    floating; returns a scalar. With `standardize` both first get mean 0 and standard deviation 1
    in each row (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024). Raises
    ValueError where the shapes differ or temperature is not positive.
    """
    check_positive("temperature", temperature)
    check_logits(student, teacher)
    if standardize:
        student, teacher = standardize_logits(student), standardize_logits(teacher)
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    return kl(student_log, teacher_log, temperature**2)
