"""Logits with mean 0 and deviation 1."""


def standardize(logits):
    """Each row with mean 0 and sample standard deviation 1; same shape and dtype.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024: apply to both sides
    before `kd`. Logits (…, classes), at least two classes.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (1e-7 + logits.std(dim=-1, keepdim=True))
