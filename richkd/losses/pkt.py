"""Probabilistic knowledge transfer."""

from torch import Tensor

from richkd.losses.check import check_same


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: KL between the samples' similarity distributions.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    ECCV 2018, cosine kernel. Features (batch, d_student) and (batch, d_teacher), floating;
    returns a scalar: the mean over all batch² entries, as published. Raises ValueError where the
    batches differ.
    """
    check_same("batch size", len(student), len(teacher))
    student, teacher = _similarity(student), _similarity(teacher)
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def _similarity(features: Tensor) -> Tensor:
    """Cosines of all pairs (batch, batch), moved to [0, 1]; each row is a distribution."""
    # The epsilon is added, not a floor: the published numbers contain it.
    unit: Tensor = features / (features.norm(dim=1, keepdim=True) + 1e-7)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
