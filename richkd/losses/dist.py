"""DIST: relations between and within classes, by Pearson's correlation."""

from torch import Tensor

from richkd.losses.check import check_logits, check_positive, check_weight


def dist(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """DIST: beta·T²·(1 - mean correlation of rows) + gamma·T²·(1 - mean correlation of columns).

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. Logits (batch,
    classes), floating; returns a scalar. Pearson's correlation is between the student's and the
    teacher's softmax(z/T): of rows, a sample's probabilities (inter-class relation); of columns, a
    class's probabilities over the batch (intra-class relation). Raises ValueError where the shapes
    differ, temperature is not positive, or beta or gamma is negative.
    """
    check_weight("beta", beta)
    check_weight("gamma", gamma)
    check_positive("temperature", temperature)
    check_logits(student, teacher)
    ours, theirs = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    inter = 1 - _correlation(ours, theirs)
    intra = 1 - _correlation(ours.T, theirs.T)
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """The mean over the rows of Pearson's correlation of a row of `first` and one of `second`."""
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    norms: Tensor = first.norm(dim=1) * second.norm(dim=1)
    # The epsilon is added, not a floor: the published numbers contain it.
    return ((first * second).sum(1) / (norms + 1e-8)).mean()
