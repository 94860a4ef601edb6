"""Logit standardization: logits with mean 0 and standard deviation 1."""

from torch import Tensor


def standardize(logits: Tensor) -> Tensor:
    """Each row with mean 0 and sample standard deviation 1; same shape and dtype.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. `kd` applies it to
    both sides where `standardize` is set. Logits (…, classes), floating, at least two classes.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (1e-7 + logits.std(dim=-1, keepdim=True))
