"""Multi-level logit distillation."""

from collections.abc import Sequence

from torch import Tensor

from richkd.losses.kd import kd


def mlkd(student: Tensor, teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Multi-level logit distillation: KD, batch relation and class relation, at each temperature.

    Jin et al., "Multi-Level Logit Distillation", CVPR 2023, on one view of the images. Logits
    (batch, classes), floating; returns a scalar, the sum over the temperatures. With the
    probabilities P = softmax(z/T), the batch relation is the squared difference of student's and
    teacher's P·Pᵀ, summed and divided by the batch; the class relation that of Pᵀ·P, summed and
    divided by the number of classes. Raises ValueError where the shapes differ, there is no
    temperature, or one is not positive.
    """
    if not temperatures:
        raise ValueError("temperatures is empty, must hold at least one")
    loss = student.new_zeros(())
    for temperature in temperatures:
        loss = loss + kd(student, teacher, temperature)
        ours, theirs = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
        batch, classes = ours.shape
        loss = loss + (ours @ ours.T - theirs @ theirs.T).square().sum() / batch
        loss = loss + (ours.T @ ours - theirs.T @ theirs).square().sum() / classes
    return loss
