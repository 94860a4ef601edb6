"""The fused teacher of RichKD (arXiv 2511.09286): a conventional classifier and CLIP in one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, FiniteFloat

from richkd.base.errors import InputError
from richkd.base.files import sha256, write_json
from richkd.base.records import read_json

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

FUSED = Path("cache/fused/fused.json")

Share = Annotated[float, Field(ge=0, le=1)]


def _of_both(values: dict[str, Any]) -> dict[str, Any]:
    if set(values) != {"teacher", "clip"}:
        raise ValueError("must have a value for teacher and one for clip")
    return values


class Recipe(NamedTuple):
    """How the fused teacher is made, and from which tables.

    The dicts have the keys `teacher` and `clip`. `scales`: factors of the logits before they are
    mixed. `tables`: fingerprints of the tables that the recipe was written for. `standardize`: each
    row of logits is brought to mean 0 and deviation 1 before it is multiplied by its factor.
    `class_alphas`: an alpha for each class, fitted from `alpha`; empty: `alpha` for all classes.
    """

    alpha: Share
    lam: Share
    scales: Annotated[dict[str, FiniteFloat], AfterValidator(_of_both)]
    tables: Annotated[dict[str, str], AfterValidator(_of_both)]
    standardize: bool = False
    class_alphas: tuple[Share, ...] = ()

    def mix(self, teacher: Array, clip: Array, class_alphas: Array | None = None) -> Array:
        """z_F of both teachers' logits (..., classes), torch or numpy.

        With an alpha a_k for each class k, z_F[k] = z_C[k] + a_k d[k], where d is z_T - z_C less
        its mean over the classes. For torch the argument `class_alphas` has the a_k as a tensor on
        the device. A number added to all logits of a row of either teacher changes no softmax of
        z_F.
        """
        teacher, clip = self.scale("teacher", teacher), self.scale("clip", clip)
        if not self.class_alphas:
            return fuse_logits(teacher, clip, self.alpha)
        alphas: Any = class_alphas
        if alphas is None:
            alphas = np.asarray(self.class_alphas, np.float32)
        # A table holds each row up to a number added to all its logits. An alpha for each class
        # would turn this number into a different one for each class, so the mean is subtracted.
        difference = teacher - clip
        return clip + alphas * (difference - difference.mean(-1)[..., None])

    def scale(self, name: str, logits: Array) -> Array:
        """The logits (..., classes) of `teacher` or `clip` as they enter the mixture."""
        if self.standardize:
            logits = standardize(logits)
        # A product with 1 changes nothing, but would be one more GPU kernel in every step.
        return logits if self.scales[name] == 1 else self.scales[name] * logits

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved; those with their default value are left out."""
        default = self._field_defaults
        return {
            key: value
            for key, value in self._asdict().items()
            if key not in default or value != default[key]
        }

    def save(self) -> None:
        write_json(FUSED, self.to_dict())


def standardize(logits: Array) -> Array:
    """Each row of (..., classes) with mean 0 and sample standard deviation 1, torch or numpy.

    The same formula as in `richkd.losses.standardize`: Sun et al., "Logit Standardization in
    Knowledge Distillation", CVPR 2024.
    """
    centred = logits - logits.mean(-1)[..., None]
    return centred / (1e-7 + row_deviations(logits))[..., None]


def row_deviations(logits: Array) -> Array:
    """The sample standard deviation of each row: (..., classes) to (...), torch or numpy."""
    centred = logits - logits.mean(-1)[..., None]
    deviations: Array = ((centred * centred).sum(-1) / (logits.shape[-1] - 1)) ** 0.5
    return deviations


def table_fingerprints() -> dict[str, str]:
    """A fingerprint of each teacher's table: of its content and of what it was made from.

    Raises InputError where the record of a table is missing or damaged.
    """
    paths = {name: f"cache/{name}/cache.json" for name in ("teacher", "clip")}
    for path in paths.values():
        read_json(path, dict[str, Any])
    return {name: sha256(path) for name, path in paths.items()}


def load_recipe() -> Recipe:
    """The recipe that the stage `fusion` wrote; InputError where it is missing or damaged."""
    if not FUSED.exists():
        raise InputError(f"{FUSED} is not there: run `dvc repro fusion`")
    recipe: Recipe = read_json(FUSED, Recipe)
    return recipe


def fuse_logits(teacher: Array, clip: Array, alpha: float) -> Array:
    """z_F = alpha z_T + (1 - alpha) z_C.

    Logits (..., classes) of one shape, torch or numpy; CLIP's are already scaled. Raises ValueError
    for other shapes and for an alpha outside [0, 1].
    """
    _check(teacher, clip, alpha, "alpha")
    return alpha * teacher + (1 - alpha) * clip


def fuse_features(teacher: Tensor, clip: Tensor, lam: float) -> Tensor:
    """f_F = normalize(lam e_T + (1 - lam) e_C).

    Unit embeddings (..., dim) of one shape, as the learned heads give them; so is the result.
    Raises ValueError for other shapes and for a lam outside [0, 1].
    """
    from richkd.base.vectors import unit

    _check(teacher, clip, lam, "lam")
    return unit(clip.lerp(teacher, lam))


def _check(teacher: Array, clip: Array, share: float, name: str) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}: must be in [0, 1]")
    if teacher.shape != clip.shape:
        raise ValueError(f"the teacher gives {tuple(teacher.shape)}, CLIP {tuple(clip.shape)}")


def semantic_closeness(
    probabilities: np.ndarray, labels: np.ndarray, class_embeddings: np.ndarray
) -> np.ndarray:
    """How close in meaning to the true class the mass on the other classes lies, per image.

    The cosine of the text embeddings of the true class and of class k, averaged over k other than
    the true one with the weights p_k / (1 - p_true). Probabilities (N, C), labels (N,), unit text
    embeddings (C, D); returns (N,) in [-1, 1]; 0 where no mass is left.
    """
    similarity = (class_embeddings @ class_embeddings.T)[labels]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = 0
    mass = others.sum(1)
    return (others * similarity).sum(1) / np.maximum(mass, np.finfo(mass.dtype).tiny)
