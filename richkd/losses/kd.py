"""Knowledge distillation by softened logits."""

import torch.nn.functional as F

from richkd.losses.check import check_positive, check_same, kl


def kd(student, teacher, temperature):
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. Both (batch, classes),
    floating; returns a scalar. Raises ValueError where the shapes differ or temperature is not
    positive.
    """
    check_positive("temperature", temperature)
    check_same("shape of the logits", tuple(student.shape), tuple(teacher.shape))
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    return kl(student_log, teacher_log) * temperature**2
