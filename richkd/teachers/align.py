"""Bring both teachers' logits to one scale before they are mixed: `fusion.align`.

The teacher's logits are multiplied by s_T, CLIP's by s_C. Both are fitted on the validation images:

- `none`, the paper's way: s_T = s_C = 1.
- `temperature`: s_T = √(τ_T τ_C) / τ_T and s_C = √(τ_T τ_C) / τ_C, where τ is the temperature that
  minimises a teacher's own negative log-likelihood. Since s_T s_C = 1, the balance between both
  teachers changes, but not the sharpness, which the distillation temperature sets.
- `standardize`: each row of logits is first brought to mean 0 and deviation 1. Then
  s_T = s_C = √(d_T d_C), where d is a teacher's deviation of a row, averaged over the images. So
  the mixture is about as sharp as a mixture of the unchanged logits.

A number that is added to all logits of a row changes nothing here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import numpy as np

from richkd.base.errors import InputError
from richkd.evaluate.calibration import fit_temperature
from richkd.params.sources import Alignment
from richkd.teachers.fusion import Recipe, row_deviations

ALIGNMENTS = get_args(Alignment)
IN_SENTENCES = {"teacher": "the teacher", "clip": "CLIP"}


class Validation(NamedTuple):
    """What both teachers answer on the validation images: logits (N, C), and labels (N,) int64."""

    teacher: np.ndarray
    clip: np.ndarray
    labels: np.ndarray

    def of(self, images: np.ndarray) -> Validation:
        """The same for the images with these numbers, in their order."""
        return Validation(*(part[images] for part in self))

    def mixed(self, recipe: Recipe) -> np.ndarray:
        """z_F (N, C), mixed in the precision of both teachers' logits, then turned into float64."""
        return recipe.mix(self.teacher, self.clip).astype(float)

    def scaled(self, recipe: Recipe) -> Validation:
        """Both teachers' logits as they enter the mixture, float64."""
        return self._replace(
            teacher=recipe.scale("teacher", self.teacher).astype(float),
            clip=recipe.scale("clip", self.clip).astype(float),
        )


def align(recipe: Recipe, alignment: str, validation: Validation) -> Recipe:
    """The recipe with the scales of `alignment`, one of ALIGNMENTS, fitted on `validation`.

    Raises InputError for `temperature` where a teacher has no best temperature, and for
    `standardize` where a teacher gives all classes equal logits.
    """
    if alignment == "none":
        return recipe._replace(scales={"teacher": 1.0, "clip": 1.0}, standardize=False)
    sizes = {}
    for name in ("teacher", "clip"):
        logits = getattr(validation, name).astype(float)
        if alignment == "standardize":
            sizes[name] = float(row_deviations(logits).mean())
        else:
            sizes[name] = fit_temperature(logits, validation.labels) or 0.0
        if not sizes[name]:
            others = " or ".join(name for name in ALIGNMENTS if name != alignment)
            reason = (
                "all classes have the same logits"
                if alignment == "standardize"
                else "there is no best temperature: all answers are right, or the labels have no "
                "larger logits than other classes"
            )
            raise InputError(
                f"fusion.align: {alignment} is not possible, only {others}: for "
                f"{IN_SENTENCES[name]} on the validation images {reason}"
            )
    common = math.sqrt(sizes["teacher"] * sizes["clip"])
    if alignment == "standardize":
        return recipe._replace(scales=dict.fromkeys(sizes, common), standardize=True)
    scales = {name: common / size for name, size in sizes.items()}
    return recipe._replace(scales=scales, standardize=False)
