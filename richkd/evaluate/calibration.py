"""How far a classifier's probabilities can be trusted; numpy in, floats out.

Works on saved predictions, without torch. `scipy.special.softmax(logits.astype(float), axis=1)`
turns logits into probabilities. In every function probabilities are (samples, classes) of any float
dtype, and each row sums to 1 within 1e-3 (the logits may have been float16). Labels are (samples,)
integers in [0, classes). Other values and shapes raise ValueError.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import softmax

from richkd.params import Calibration

Curve = dict[str, np.ndarray]

NOISE = 1e-14  # rounding error of a mean of 64-bit numbers, as a share of their mean size


# --- all figures of one set of images -----------------------------------------------------------


def measure(
    logits: np.ndarray, labels: np.ndarray, settings: Calibration, temperature: float | None
) -> tuple[dict[str, float], Curve]:
    """The figures of one set of images by name, and the set's `reliability_curve`.

    Logits (samples, classes), any float dtype, and labels (samples,). With a `temperature` there
    are also `ece_tempered` and `nll_tempered`, of the logits divided by the temperature.
    """
    logits, bins = logits.astype(float), settings.bins
    probabilities = softmax(logits, axis=1)
    figures = {
        "ece": expected_calibration_error(probabilities, labels, bins),
        "maximum_ce": maximum_calibration_error(probabilities, labels, bins),
        "adaptive_ece": adaptive_calibration_error(probabilities, labels, bins),
        "classwise_ece": classwise_calibration_error(probabilities, labels, bins),
        "brier": brier_score(probabilities, labels),
        "nll": negative_log_likelihood(probabilities, labels),
        "aurc": area_under_risk_coverage(probabilities, labels),
        **confidence_quadrants(probabilities, labels, settings.threshold),
    }
    if temperature is not None:
        tempered = softmax(logits / temperature, axis=1)
        figures |= {
            "ece_tempered": expected_calibration_error(tempered, labels, bins),
            "nll_tempered": negative_log_likelihood(tempered, labels),
        }
    return figures, reliability_curve(probabilities, labels, bins)


# --- binned errors ------------------------------------------------------------------------------


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Curve:
    """Confidence against accuracy in equal-width bins (lo, hi]: the reliability diagram.

    DeGroot and Fienberg, 1983; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    Confidence is the largest probability. Returns a dict of arrays with one entry for each
    bin that holds a sample, in rising order: `lo`, `hi`, `count` (int64), `confidence` and
    `accuracy` (means in the bin). Empty bins are left out, since they have no means.
    """
    confidence, correct = _confidence_and_correctness(*_check_probabilities(probabilities, labels))
    return _curve(confidence, correct, _equal_width_edges(bins))


def pool_curves(curves: Sequence[Curve]) -> Curve:
    """One reliability curve of all samples, from the curves of several sets with the same bins."""
    together = {key: np.concatenate([curve[key] for curve in curves]) for key in curves[0]}
    lo, first, bins = np.unique(together["lo"], return_index=True, return_inverse=True)
    count = np.bincount(bins, together["count"])
    means = {
        key: np.bincount(bins, together["count"] * together[key]) / count
        for key in ("confidence", "accuracy")
    }
    return {"lo": lo, "hi": together["hi"][first], "count": count.astype(np.int64), **means}


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """ECE in [0, 1]: mean gap between confidence and accuracy, weighted by the bins' counts.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017. Bins as in `reliability_curve`.
    """
    return _mean_gap(reliability_curve(probabilities, labels, bins))


def maximum_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """MCE in [0, 1]: the largest gap of any bin of `reliability_curve` (Guo et al., ICML 2017)."""
    return float(_gaps(reliability_curve(probabilities, labels, bins)).max())


def adaptive_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """ECE in [0, 1] over bins of equal mass, so that each has enough samples for an accuracy.

    The adaptive ranges of Nixon et al., "Measuring Calibration in Deep Learning", CVPR Workshops
    2019, applied to the top label as in `expected_calibration_error` (their ACE also averages
    over classes). Samples of equal confidence share a bin, so the result does not depend on the
    order of the samples. With fewer distinct confidences than bins there are fewer bins.
    """
    confidence, correct = _confidence_and_correctness(*_check_probabilities(probabilities, labels))
    _check_bins(bins)
    ends = (len(confidence) * np.arange(1, bins + 1) + bins - 1) // bins  # rounded up
    edges = np.unique(np.append(0.0, np.sort(confidence)[ends - 1]))
    return _mean_gap(_curve(confidence, correct, edges))


def classwise_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """Mean over classes of the ECE of that class's probability, equal-width bins; in [0, 1].

    Static calibration error of Nixon et al., CVPR Workshops 2019; classwise-ECE of Kull et al.,
    "Beyond temperature scaling", NeurIPS 2019.
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    samples, classes = probabilities.shape
    # All classes in one pass: bin b of class c is bin c * bins + b of one long row.
    inside = _bin_of(probabilities, _equal_width_edges(bins)) + bins * np.arange(classes)
    correct = labels[:, None] == np.arange(classes)
    gaps = np.bincount(inside.ravel(), (probabilities - correct).ravel(), bins * classes)
    return float(np.abs(gaps).sum() / (samples * classes))


def _check_bins(bins: int) -> None:
    if not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins is {bins}, must be an integer of at least 1")


def _equal_width_edges(bins: int) -> np.ndarray:
    _check_bins(bins)
    # k/bins rounds once, so that 0.3 is an edge of ten bins; a multiple of 1/bins may not be.
    return np.arange(bins + 1) / bins


def _bin_of(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The number of the bin (lo, hi]; a probability of 0 belongs to the first bin."""
    number: np.ndarray = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, None)
    return number


def _curve(confidence: np.ndarray, correct: np.ndarray, edges: np.ndarray) -> Curve:
    """Means in the bins."""
    inside = _bin_of(confidence, edges)
    count = np.bincount(inside, minlength=len(edges) - 1)
    filled = count > 0
    count = count[filled]
    return {
        "lo": edges[:-1][filled],
        "hi": edges[1:][filled],
        "count": count,
        "confidence": np.bincount(inside, confidence, len(edges) - 1)[filled] / count,
        "accuracy": np.bincount(inside, correct, len(edges) - 1)[filled] / count,
    }


def _gaps(curve: Curve) -> np.ndarray:
    gaps: np.ndarray = np.abs(curve["confidence"] - curve["accuracy"])
    return gaps


def _mean_gap(curve: Curve) -> float:
    return float(np.average(_gaps(curve), weights=curve["count"]))


# --- scores -------------------------------------------------------------------------------------


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Squared error against the one-hot label, summed over classes, mean over samples; in [0, 2].

    Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    right = probabilities[np.arange(len(labels)), labels]
    return float(np.mean(np.square(probabilities).sum(axis=1) - 2 * right + 1))


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -log of the label's probability, in nats; a probability of 0 counts as 2.2e-308."""
    probabilities, labels = _check_probabilities(probabilities, labels)
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(float).tiny)).mean())


def confidence_quadrants(
    probabilities: ArrayLike, labels: ArrayLike, threshold: float
) -> dict[str, float]:
    """Shares of the samples by confidence and correctness; they sum to 1.

    Confident means that the largest probability is at least threshold, in [0, 1]. Returns a dict
    of floats: `confident_correct`, `confident_wrong`, `unsure_correct`, `unsure_wrong`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, must be in [0, 1]")
    confidence, correct = _confidence_and_correctness(*_check_probabilities(probabilities, labels))
    confident = confidence >= threshold
    return {
        "confident_correct": float(np.mean(confident & correct)),
        "confident_wrong": float(np.mean(confident & ~correct)),
        "unsure_correct": float(np.mean(~confident & correct)),
        "unsure_wrong": float(np.mean(~confident & ~correct)),
    }


def area_under_risk_coverage(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """AURC in [0, 1]: the mean error rate of the k most confident samples, over all k.

    Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ICLR 2019. A classifier that may leave out its least confident answers has a low one if its
    errors are among them. Confidence is the largest probability. Samples of equal confidence are in
    no order: the result is the mean over all their orders.
    """
    confidence, correct = _confidence_and_correctness(*_check_probabilities(probabilities, labels))
    _, tied = np.unique(-confidence, return_inverse=True)  # from the most confident down
    count = np.bincount(tied)
    error_rate = np.bincount(tied, ~correct) / count
    errors = np.cumsum(np.repeat(error_rate, count))
    return float(np.mean(errors / np.arange(1, len(errors) + 1)))


# --- temperature --------------------------------------------------------------------------------


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float | None:
    """Temperature T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al., ICML 2017. Logits (samples, classes), finite, of any scale: for k times the logits
    the result is k times as large. None where no T is the best one, in two cases. If every label
    has the largest logit of its sample, the likelihood grows as long as T falls. If labels on
    average have no larger logits than other classes, it grows as long as T rises: most answers are
    far off, or the logits do not depend on the class.
    """
    logits, labels = _check_arrays("logits", logits, labels)
    margins = logits - np.take_along_axis(logits, labels[:, None], axis=1)
    size = float(np.abs(margins).mean())

    # The loss is convex in 1/T. Its slope rises from the mean margin, where 1/T is 0, to the mean
    # of the largest margins, and is 0 at the best T if these two ends have different signs.
    if not (margins.mean() < -NOISE * size and margins.max(axis=1).mean() > NOISE * size):
        return None
    margins /= size

    def slope(log_inverse: float) -> float:
        weights = softmax(math.exp(log_inverse) * margins, axis=1)
        return float((weights * margins).sum(axis=1).mean())

    lowest = highest = 0.0
    while slope(lowest) > 0:
        lowest -= 1
    while slope(highest) < 0:
        highest += 1
    return size * math.exp(-brentq(slope, lowest, highest, xtol=1e-10))


# --- input --------------------------------------------------------------------------------------


def _confidence_and_correctness(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The largest probability of each sample, and whether its class is the label."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def _check_probabilities(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = _check_arrays("probabilities", probabilities, labels)
    if probabilities.min() < 0:
        raise ValueError(f"probabilities hold {probabilities.min():g}, must not be negative")
    sums = probabilities.sum(axis=1)
    worst = np.abs(sums - 1).argmax()
    if abs(sums[worst] - 1) > 1e-3:
        raise ValueError(
            f"probabilities of sample {worst} sum to {sums[worst]:g}, must be 1 within 0.001"
        )
    return np.minimum(probabilities, 1), labels  # rounding may have left 1.0005


def _check_arrays(name: str, scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, the scores in float64; `name` says in errors what the scores are."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} have shape {scores.shape}, must be (samples, classes), not empty")
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, must be {scores.shape[:1]}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}, must be integers")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, must be in [0, {scores.shape[1]})"
        )
    if not np.isfinite(scores).all():
        sample = np.argwhere(~np.isfinite(scores))[0, 0]
        raise ValueError(f"{name} of sample {sample} are not finite")
    return scores, labels
