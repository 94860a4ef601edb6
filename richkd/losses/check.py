"""What losses ask of their inputs, and a divergence that several share."""

import math

import torch.nn.functional as F


def check_positive(name, value):
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, must be positive and finite")


def check_same(what, student, teacher):
    """Broadcasting would turn most mismatches into a number without meaning."""
    if student != teacher:
        raise ValueError(f"{what} is {teacher} for the teacher, must equal the student's {student}")


def check_maps(student_map, teacher_map):
    student = (len(student_map), *student_map.shape[2:])
    teacher = (len(teacher_map), *teacher_map.shape[2:])
    check_same("(batch, height, width)", student, teacher)


def kl(student_log, teacher_log):
    """KL(teacher ‖ student) of log-probabilities over the last dimension, mean over the rest."""
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1).mean()
