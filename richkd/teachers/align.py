"""Bring both teachers' logits to one scale before they are mixed: `fusion.align`.

The scales are fitted on the validation images, with s_T and s_C for the teacher and CLIP:

- `none`, the paper's way: s_T = s_C = 1.
- `temperature`: s_T = √(τ_T τ_C) / τ_T and s_C = √(τ_T τ_C) / τ_C, where τ is the temperature that
  minimises a teacher's own negative log-likelihood. Since s_T s_C = 1, the balance of the mixture
  changes and its sharpness stays, which is the business of the distillation temperature.
- `standardize`: each row of logits first has mean 0 and deviation 1. Then s_T = s_C = √(d_T d_C),
  where d is the mean over the images of the deviation of a row. So the mixture is about as sharp
  as that of the logits as they are.

None of this depends on a number that is added to all logits of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from richkd.base.errors import InputError
from richkd.evaluate.calibration import fit_temperature
from richkd.teachers.fusion import Recipe, row_deviations

ALIGNMENTS = ("none", "temperature", "standardize")
IN_SENTENCES = {"teacher": "the teacher", "clip": "CLIP"}


class Validation(NamedTuple):
    """What both teachers answer on the validation images: logits (N, C), and labels (N,) int64."""

    teacher: np.ndarray
    clip: np.ndarray
    labels: np.ndarray

    def of(self, images: np.ndarray) -> Validation:
        """Some of the images, in an index's order."""
        return Validation(*(part[images] for part in self))

    def mixed(self, recipe: Recipe) -> np.ndarray:
        """z_F (N, C), float64, mixed in the precision of the parts."""
        return recipe.mix(self.teacher, self.clip).astype(float)

    def scaled(self, recipe: Recipe) -> Validation:
        """The logits as they enter the mixture, float64."""
        return self._replace(
            teacher=recipe.scale("teacher", self.teacher).astype(float),
            clip=recipe.scale("clip", self.clip).astype(float),
        )


def align(recipe: Recipe, alignment: str, validation: Validation) -> Recipe:
    """The recipe with the scales of `alignment`, one of ALIGNMENTS, fitted on `validation`.

    Raises InputError where a teacher has no best temperature, or gives all classes equal logits.
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
