"""Checks of arguments, and the KL divergence, which several losses share."""

import math

from torch import Tensor


def check_positive(name: str, value: float) -> None:
    """Raises ValueError where the argument `name` is not a positive finite number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, must be positive and finite")


def check_weight(name: str, value: float) -> None:
    """Raises ValueError where the argument `name`, a weight, is negative or not finite."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}, must be 0 or positive, and finite")


def check_same(what: str, student: object, teacher: object) -> None:
    """Raises ValueError where student and teacher differ in `what`, a shape or a size.

    Without this check broadcasting would turn most mismatches into a number without meaning.
    """
    if student != teacher:
        raise ValueError(f"{what} is {teacher} for the teacher, must equal the student's {student}")


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError where the logits differ in shape."""
    check_same("shape of the logits", tuple(student.shape), tuple(teacher.shape))


def check_maps(student_map: Tensor, teacher_map: Tensor) -> None:
    """Raises ValueError where the maps differ in batch, height or width; channels may differ."""
    student = (len(student_map), *student_map.shape[2:])
    teacher = (len(teacher_map), *teacher_map.shape[2:])
    check_same("(batch, height, width)", student, teacher)


def kl(student_log: Tensor, teacher_log: Tensor, factor: float) -> Tensor:
    """factor·KL(teacher ‖ student), the mean over all rows of log-probabilities (…, C).

    The sign goes with the factor: the gradient of torch's `kl_div` takes a kernel for it.
    """
    negative = ((student_log - teacher_log) * teacher_log.exp()).sum(-1).mean()
    return negative * -factor
