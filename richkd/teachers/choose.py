"""The alpha of the fused teacher, chosen on the validation images: `fusion.alpha: auto`.

Alpha is judged by the mixture's negative log-likelihood at the mixture's own best temperature T:

    alpha* = argmin over alpha of min over T of NLL(softmax((alpha z_T + (1 - alpha) z_C) / T))

NLL at T = 1 would prefer an alpha whose mixture has the right sharpness, but the distillation
temperature sets the sharpness. With u = alpha / T and v = (1 - alpha) / T both minima become one:
the minimum of the convex NLL(softmax(u z_T + v z_C)) over u, v >= 0, and alpha* = u / (u + v). So
the scales of both teachers' logits do not change the mixture, except for its sharpness.

`fusion.per_class` gives each class its own alpha, see `class_alphas`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from richkd.base.errors import InputError
from richkd.evaluate.calibration import fit_temperature
from richkd.teachers.align import Validation

DRAWS = 200  # bootstrap draws of the validation images
# The ridges that `class_alphas` tries, in units of the mean curvature.
RIDGES = 10.0 ** np.arange(-1, 3.5, 0.5)


def bootstrap_counts(images: int) -> np.ndarray:
    """(DRAWS, images) float64: how often each bootstrap draw contains each image.

    The same number of images always gives the same draws.
    """
    draw = np.random.default_rng(0)
    return draw.multinomial(images, np.full(images, 1 / images), size=DRAWS).astype(float)


class Chosen(NamedTuple):
    """`alpha`, rounded to a thousandth, and the middle 95 % of the choices on bootstrap draws."""

    alpha: float
    low: float
    high: float


def choose_alpha(validation: Validation) -> float:
    """alpha* of the module's docstring, rounded to a thousandth; `validation` has scaled logits.

    Where a mixture is right on all images, its NLL approaches 0 as T falls, and there is no best T.
    Alpha is then that of the mixture at which the optimiser stops. InputError where no mixture is
    better than guessing.
    """
    margins, sizes = _margins(validation)
    return round(_alpha(_fit(margins), sizes), 3)


def choose_with_spread(validation: Validation) -> Chosen:
    """`choose_alpha`, and the spread of its choices on bootstrap draws of the images.

    The weights (u, v) of a draw lie so near to the weights of all images that two steps of Newton's
    method find them. The first step needs no new probabilities.
    """
    margins, sizes = _margins(validation)
    weights = _fit(margins)
    slopes, bends = _derivatives(weights, margins)
    alphas = []
    for counts in bootstrap_counts(len(slopes)):
        first = _newton_step(weights, counts, slopes, bends)
        drawn = counts > 0
        second = _newton_step(first, counts[drawn], *_derivatives(first, margins[:, drawn]))
        alphas.append(_alpha(second, sizes))
    low, high = np.quantile(alphas, [0.025, 0.975])
    return Chosen(round(_alpha(weights, sizes), 3), float(low), float(high))


def _derivatives(weights: np.ndarray, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives of each image's loss for the weights, (N, 2) and (N, 2, 2)."""
    probabilities = softmax(np.tensordot(weights, margins, 1), axis=1)
    weighted = probabilities * margins
    slopes = weighted.sum(2).T
    bends = np.einsum("inc,jnc->nij", weighted, margins)
    return slopes, bends - slopes[:, :, None] * slopes[:, None, :]


def _newton_step(
    weights: np.ndarray, counts: np.ndarray, slopes: np.ndarray, bends: np.ndarray
) -> np.ndarray:
    """The weights after a step towards the lowest loss of a draw with `counts` of each image."""
    # A pseudoinverse: for two teachers with the same answers the curvature has no inverse.
    inverse = np.linalg.pinv(np.tensordot(counts, bends, 1), hermitian=True)
    moved = np.maximum(weights - inverse @ (counts @ slopes), 0)
    return moved if moved.any() else weights


def _margins(validation: Validation) -> tuple[np.ndarray, np.ndarray]:
    """Each logit minus the label's, (2, N, C), divided by its teacher's mean size; the sizes."""
    where = validation.labels[:, None]
    margins = np.stack(
        [z - np.take_along_axis(z, where, 1) for z in (validation.teacher, validation.clip)]
    )
    sizes = np.abs(margins).mean((1, 2))
    sizes[sizes == 0] = 1
    return margins / sizes[:, None, None], sizes


def _fit(margins: np.ndarray) -> np.ndarray:
    """The weights (u, v) of the lowest mean loss, for the margins of `_margins`."""

    def loss_and_slope(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.tensordot(weights, margins, 1)
        total = logsumexp(mixed, axis=1)
        probabilities = np.exp(mixed - total[:, None])
        return total.mean(), np.einsum("nc,inc->i", probabilities, margins) / len(total)

    weights: np.ndarray = minimize(
        loss_and_slope,
        [1.0, 1.0],
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * 2,
        options={"ftol": 1e-15, "gtol": 1e-9},
    ).x
    if not weights.any():
        raise InputError(
            "fusion.alpha: auto is not possible, only a number: no mixture of both teachers knows "
            "the labels of the validation images better than guessing does"
        )
    return weights


def _alpha(weights: np.ndarray, sizes: np.ndarray) -> float:
    teacher, clip = weights / sizes
    return float(teacher / (teacher + clip))


# --- an alpha for each class --------------------------------------------------------------------


def class_alphas(validation: Validation, alpha: float, temperature: float) -> np.ndarray | None:
    """An alpha a_k for each class k, (C,), rounded to a thousandth; None if `alpha` alone is best.

    z_F[k] = a_k z_T[k] + (1 - a_k) z_C[k], where `temperature` T is the best one of the common
    alpha, and `validation` has the scaled logits. From the common alpha each a_k takes one step of
    Newton's method,

        a_k = alpha - sum_i g_ik / (sum_i h_ik + ridge)
        g_ik = (p_ik - y_ik) d_ik,  h_ik = p_ik d_ik^2,  d = (z_T - z_C) / T less each row's mean

    over images i with probabilities p and one-hot labels y, and is kept in [0, 1]. One ridge
    shrinks the steps of all classes. It is the ridge with the lowest leave-one-out NLL: each image
    is judged with alphas that were fitted without this image.
    """
    difference = _difference(validation) / temperature
    slopes = softmax(validation.clip / temperature + alpha * difference, axis=1) * difference
    bends = slopes * difference
    right = np.arange(len(slopes)), validation.labels
    slopes[right] -= difference[right]
    slope, bend = slopes.sum(0), bends.sum(0)
    best, best_loss = None, _losses(validation, alpha, temperature).mean()
    for ridge in RIDGES * bend.mean():
        others = np.clip(alpha - (slope - slopes) / (bend - bends + ridge), 0, 1)
        loss = _losses(validation, others, temperature).mean()
        if loss < best_loss:
            best, best_loss = np.clip(alpha - slope / (bend + ridge), 0, 1), loss
    return None if best is None else best.round(3)


def _difference(validation: Validation) -> np.ndarray:
    """z_T - z_C, (N, C), each row with mean 0."""
    difference = validation.teacher - validation.clip
    return difference - difference.mean(1)[:, None]


def _losses(validation: Validation, alpha: float | np.ndarray, temperature: float) -> np.ndarray:
    """The NLL of each image, (N,); alpha is one number, (C,), or (N, C)."""
    mixed = (validation.clip + alpha * _difference(validation)) / temperature
    right = mixed[np.arange(len(mixed)), validation.labels]
    losses: np.ndarray = logsumexp(mixed, axis=1) - right
    return losses


def held_out_gain(validation: Validation) -> tuple[float, float] | None:
    """The NLL with an alpha for each class minus the NLL with the common alpha; standard error.

    Both are fitted on one half of the images and judged on the other half, then the other way
    round. The halves are always the same. None where an alpha or a temperature cannot be fitted.
    """
    order = np.random.default_rng(0).permutation(len(validation.labels))
    halves = order[::2], order[1::2]
    differences = []
    for fitted, judged in (halves, halves[::-1]):
        one, other = validation.of(fitted), validation.of(judged)
        try:
            alpha = choose_alpha(one)
        except InputError:
            return None
        temperature = fit_temperature(alpha * one.teacher + (1 - alpha) * one.clip, one.labels)
        if temperature is None:
            return None
        alphas = class_alphas(one, alpha, temperature)
        common = _losses(other, alpha, temperature)
        best = common if alphas is None else _losses(other, alphas, temperature)
        differences.append(best - common)
    gain = np.concatenate(differences)
    return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))
