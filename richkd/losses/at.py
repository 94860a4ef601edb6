"""Attention transfer."""

import torch.nn.functional as F

from richkd.losses.check import check_maps, check_positive


def at(student_map, teacher_map, p):
    """Attention transfer: mean squared difference of the normalised maps of mean |activation|^p.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017; p is 2 there. Maps
    (batch, channels, height, width), floating, channels may differ; returns a scalar. Raises
    ValueError where batch, height or width differ or p is not positive.
    """
    check_positive("p", p)
    check_maps(student_map, teacher_map)
    return F.mse_loss(_attention(student_map, p), _attention(teacher_map, p))


def _attention(feature_map, p):
    return F.normalize(feature_map.abs().pow(p).mean(dim=1).flatten(1))
