"""Attention transfer."""

import torch.nn.functional as F
from torch import Tensor

from richkd.losses.check import check_maps, check_positive


def at(student_map: Tensor, teacher_map: Tensor, p: float) -> Tensor:
    """Attention transfer: mean squared difference of the attention maps of one stage.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. An attention map is
    the mean over the channels of |activation|^p, normalised for each sample; p is 2 in the paper.
    Maps (batch, channels, height, width), floating, channels may differ; returns a scalar. Raises
    ValueError where batch, height or width differ or p is not positive.
    """
    check_positive("p", p)
    check_maps(student_map, teacher_map)
    return F.mse_loss(_attention(student_map, p), _attention(teacher_map, p))


def _attention(feature_map: Tensor, p: float) -> Tensor:
    """The attention map (batch, height·width), each row with norm 1."""
    return F.normalize(feature_map.abs().pow(p).mean(dim=1).flatten(1))
