"""Calibration figures against cases worked by hand, and their properties."""

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from richkd.evaluate.calibration import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    brier_score,
    classwise_calibration_error,
    confidence_quadrants,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    measure,
    negative_log_likelihood,
    pool_curves,
    reliability_curve,
)
from richkd.params import Calibration

quick = settings(max_examples=60, deadline=None, derandomize=True)
ERRORS = [
    expected_calibration_error,
    maximum_calibration_error,
    adaptive_calibration_error,
    classwise_calibration_error,
]
FIGURES = [*ERRORS, area_under_risk_coverage, brier_score, negative_log_likelihood]


def binary(*first: float) -> np.ndarray:
    """Probabilities of two classes, given the first's."""
    column = np.array(first, dtype=float)
    return np.stack([column, 1 - column], axis=1)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    samples, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    logits = draw(st.sampled_from([0.0, 1.0, 5.0, 200.0])) * rng.normal(size=(samples, classes))
    return softmax(logits, axis=1), rng.integers(classes, size=samples)


# --- binned errors ------------------------------------------------------------------------------

HAND = binary(0.9, 0.9, 0.9, 0.6, 0.3), np.array([0, 0, 1, 1, 1])
# Ten bins: (.8, .9] three samples, accuracy 2/3; (.5, .6] one, 0; (.6, .7] one, 1.
GAPS = [(1, 0.6), (1, 0.3), (3, 0.9 - 2 / 3)]


def test_curve_by_hand() -> None:
    curve = reliability_curve(*HAND, bins=10)
    assert list(curve) == ["lo", "hi", "count", "confidence", "accuracy"]
    np.testing.assert_array_equal(curve["lo"], [0.5, 0.6, 0.8])
    np.testing.assert_array_equal(curve["hi"], [0.6, 0.7, 0.9])
    np.testing.assert_array_equal(curve["count"], [1, 1, 3])
    np.testing.assert_allclose(curve["confidence"], [0.6, 0.7, 0.9])
    np.testing.assert_allclose(curve["accuracy"], [0, 1, 2 / 3])


def test_errors_by_hand() -> None:
    expected = sum(count * gap for count, gap in GAPS) / 5
    assert expected_calibration_error(*HAND, bins=10) == pytest.approx(expected)
    assert maximum_calibration_error(*HAND, bins=10) == pytest.approx(0.6)
    # Two bins of equal mass: the third of five is a .9, and all the .9 stay together.
    assert adaptive_calibration_error(*HAND, bins=2) == pytest.approx(
        abs((3 * 0.9 + 0.6 + 0.7) / 5 - 3 / 5)
    )
    # Class 0 alone: .3 and .6 hold no label 0, .9 two of three; class 1 mirrors it.
    assert classwise_calibration_error(*HAND, bins=10) == pytest.approx(
        (0.3 + 0.6 + 3 * (0.9 - 2 / 3)) / 5
    )


def test_equal_mass_bins_by_hand() -> None:
    probabilities = binary(0.55, 0.6, 0.65, 0.7, 0.9, 0.95)
    labels = np.array([0, 1, 0, 0, 0, 1])
    # (.55 .6) half right, (.65 .7) all right, (.9 .95) half right.
    expected = (abs(0.575 - 0.5) + abs(0.675 - 1) + abs(0.925 - 0.5)) / 3
    assert adaptive_calibration_error(probabilities, labels, bins=3) == pytest.approx(expected)
    # Five in two bins: three and two. Fewer samples than bins: one each.
    five = binary(0.55, 0.6, 0.65, 0.9, 0.95), [0, 0, 0, 1, 1]
    expected = (3 * abs(0.6 - 1) + 2 * 0.925) / 5
    assert adaptive_calibration_error(*five, bins=2) == pytest.approx(expected)
    expected = (0.45 + 0.4 + 0.35 + 0.9 + 0.95) / 5
    assert adaptive_calibration_error(*five, bins=15) == pytest.approx(expected)


def test_a_bin_holds_its_upper_edge_and_not_its_lower() -> None:
    for bins in (2, 3, 7, 10, 15, 20):
        for edge in range(bins // 2 + 1, bins + 1):
            curve = reliability_curve(binary(edge / bins), [0], bins)
            assert curve["hi"][0] == edge / bins
            above = np.nextafter(edge / bins, 2)
            if edge < bins:
                assert reliability_curve(binary(above), [0], bins)["lo"][0] == edge / bins


def test_probabilities_of_zero_and_one_are_in_the_outer_bins() -> None:
    certain = np.eye(3)
    assert expected_calibration_error(certain, [0, 1, 2]) == 0
    assert classwise_calibration_error(certain, [0, 1, 2]) == 0
    assert maximum_calibration_error(certain, [1, 2, 0]) == 1
    assert classwise_calibration_error(certain, [1, 2, 0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("error", ERRORS)
def test_a_calibrated_classifier_has_no_error(error: Callable[..., float]) -> None:
    probabilities = np.repeat(binary(0.75, 0.6), [4, 5], axis=0)
    labels = [0, 0, 0, 1] + [0, 0, 0, 1, 1]
    assert error(probabilities, labels) == pytest.approx(0, abs=1e-12)
    assert error(probabilities, labels, bins=1) == pytest.approx(0, abs=1e-12)


def test_equal_confidences_share_an_adaptive_bin() -> None:
    # Cut apart by rank, the wrong ones would make bins of accuracy 0 and an error of 0.32.
    probabilities = np.repeat(binary(0.8), 100, axis=0)
    labels = np.repeat([0, 1], [80, 20])
    assert adaptive_calibration_error(probabilities, labels, bins=10) == pytest.approx(0, abs=1e-12)


@quick
@given(predictions(), st.integers(1, 20))
def test_errors_are_in_range_and_the_maximum_is_the_largest(
    case: tuple[np.ndarray, np.ndarray], bins: Any
) -> None:
    errors = [error(*case, bins) for error in ERRORS]
    assert all(type(error) is float and 0 <= error <= 1 for error in errors)
    assert errors[0] <= errors[1] + 1e-12
    curve = reliability_curve(*case, bins)
    assert curve["count"].sum() == len(case[1]) and curve["count"].min() > 0
    assert ((curve["lo"] < curve["hi"]) & np.isfinite(curve["accuracy"])).all()
    assert (curve["confidence"] > curve["lo"] - 1e-12).all()
    assert (curve["confidence"] < curve["hi"] + 1e-12).all()


@quick
@given(predictions(), st.integers(0, 999))
def test_the_order_of_samples_does_not_matter(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    probabilities, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    for figure in FIGURES:
        shuffled = figure(probabilities[order], labels[order])
        assert shuffled == pytest.approx(figure(probabilities, labels), abs=1e-12)
    assert confidence_quadrants(probabilities[order], labels[order], 0.5) == pytest.approx(
        confidence_quadrants(probabilities, labels, 0.5)
    )


@quick
@given(predictions())
def test_one_bin_is_the_difference_of_the_means(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case
    gap = abs(probabilities.max(1).mean() - (probabilities.argmax(1) == labels).mean())
    for error in ERRORS[:3]:
        assert error(*case, bins=1) == pytest.approx(gap, abs=1e-12)


@quick
@given(predictions(), predictions(), st.integers(1, 20))
def test_curves_of_several_sets_are_that_of_all_samples(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    classes = min(one[0].shape[1], other[0].shape[1])
    sets = [(softmax(x[:, :classes], axis=1), labels % classes) for x, labels in (one, other)]
    together = np.concatenate([x for x, _ in sets]), np.concatenate([x for _, x in sets])
    pooled = pool_curves([reliability_curve(*of_set, bins) for of_set in sets])
    for key, expected in reliability_curve(*together, bins).items():
        np.testing.assert_allclose(pooled[key], expected)
        assert pooled[key].dtype == expected.dtype


# --- scores -------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    labels = [0, 2]
    assert brier_score(probabilities, labels) == pytest.approx(
        (0.25 + 0.09 + 0.04 + 0.01 + 0.64 + 0.81) / 2
    )
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(
        -(math.log(0.5) + math.log(0.1)) / 2
    )


def test_scores_at_their_ends() -> None:
    assert brier_score(np.eye(2), [0, 1]) == 0
    assert brier_score(np.eye(2), [1, 0]) == 2
    assert negative_log_likelihood(np.eye(2), [0, 1]) == 0
    assert negative_log_likelihood(np.eye(2), [1, 0]) == pytest.approx(708.396, abs=1e-3)


def test_quadrants_by_hand() -> None:
    quadrants = confidence_quadrants(*HAND, threshold=0.9)
    assert quadrants == pytest.approx(
        {
            "confident_correct": 0.4,
            "confident_wrong": 0.2,
            "unsure_correct": 0.2,
            "unsure_wrong": 0.2,
        }
    )
    assert all(type(share) is float for share in quadrants.values())


@quick
@given(predictions(), st.floats(0, 1))
def test_quadrants_sum_to_one(case: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    quadrants = confidence_quadrants(*case, threshold)
    assert sum(quadrants.values()) == pytest.approx(1)
    assert min(quadrants.values()) >= 0


# --- risk and coverage --------------------------------------------------------------------------


def test_risk_coverage_by_hand() -> None:
    # From the most confident down: right, wrong, right, wrong.
    probabilities = binary(0.9, 0.8, 0.3, 0.6)
    labels = np.array([0, 1, 1, 1])
    expected = (0 / 1 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    assert area_under_risk_coverage(probabilities, labels) == pytest.approx(expected)


def test_risk_coverage_at_its_ends() -> None:
    certain = np.eye(3)
    assert area_under_risk_coverage(certain, [0, 1, 2]) == 0
    assert area_under_risk_coverage(certain, [1, 2, 0]) == 1
    # Confidence that says nothing: at every coverage the risk is the error rate.
    same = np.repeat(binary(0.8), 10, axis=0)
    labels = np.repeat([0, 1], [7, 3])
    assert area_under_risk_coverage(same, labels) == pytest.approx(0.3)


def test_errors_among_the_least_confident_cost_least() -> None:
    probabilities = binary(*np.linspace(0.99, 0.51, 20))
    last, first = np.repeat([0, 1], [15, 5]), np.repeat([1, 0], [5, 15])
    # k answers are asked for: 15 are right, then the errors come.
    best = sum(max(0, k - 15) / k for k in range(1, 21)) / 20
    assert area_under_risk_coverage(probabilities, last) == pytest.approx(best)
    worst = sum(min(k, 5) / k for k in range(1, 21)) / 20
    assert area_under_risk_coverage(probabilities, first) == pytest.approx(worst)


@quick
@given(st.lists(st.tuples(st.sampled_from([0.6, 0.8, 0.9]), st.booleans()), min_size=1, max_size=5))
def test_risk_coverage_of_equal_confidences_is_the_mean_over_their_orders(
    answers: list[tuple[float, bool]],
) -> None:
    areas = []
    for order in permutations(answers):
        # sorted() keeps the order of equal samples, so each of their orders occurs equally often.
        wrong = [not right for _, right in sorted(order, key=lambda answer: -answer[0])]
        areas.append(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))
    labels = [0 if right else 1 for _, right in answers]
    found = area_under_risk_coverage(binary(*(x for x, _ in answers)), labels)
    assert found == pytest.approx(np.mean(areas))


# --- temperature --------------------------------------------------------------------------------


def calibrated_logits(samples: int = 4000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(samples, classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("factor", [1e-30, 0.01, 0.2, 1.0, 3.0, 50.0, 1e30])
def test_temperature_finds_the_scale(factor: float) -> None:
    """0.01 is CLIP's logits without their scale of 100; 50 is a very sharp classifier."""
    logits, labels = calibrated_logits()
    best = fit_temperature(logits, labels)
    assert best == pytest.approx(1, abs=0.05)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * best, rel=1e-8)


@quick
@given(st.integers(2, 60), st.integers(2, 9), st.floats(-200, 200), st.integers(0, 9999))
def test_temperature_grows_with_the_logits(
    samples: int, classes: int, exponent: float, seed: int
) -> None:
    """Also where there is none: it does not depend on the scale."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(samples, classes)), rng.integers(classes, size=samples)
    best, scaled = (fit_temperature(k * logits, labels) for k in (1, 10**exponent))
    if best is None or scaled is None:
        assert best is scaled is None
    else:
        assert scaled == pytest.approx(10**exponent * best, rel=1e-6)


def test_one_wrong_answer_of_many_has_a_temperature() -> None:
    """Also by a margin that is small beside the other logits."""
    for margin in (1.0, 1e-6):
        logits = np.concatenate([np.tile([1.0, 0.0], (999, 1)), [[0.0, margin]]])
        best = fit_temperature(logits, np.zeros(1000, int))
        assert best is not None

        def slope(temperature: float, margin: float = margin) -> float:
            right, wrong = (1 / (1 + np.exp(x / temperature)) for x in (1, -margin))
            return float(margin * wrong - 999 * right)

        assert slope(best * 0.999) > 0 > slope(best * 1.001)


def test_temperature_minimises_the_likelihood_and_calibrates() -> None:
    logits, labels = calibrated_logits()
    logits = 4 * logits
    best = fit_temperature(logits, labels)
    assert best is not None

    def loss(temperature: float) -> float:
        return negative_log_likelihood(softmax(logits / temperature, axis=1), labels)

    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01), loss(1))
    error = expected_calibration_error(softmax(logits / best, axis=1), labels)
    assert error < 0.03 < expected_calibration_error(softmax(logits, axis=1), labels)


BALANCED = np.tile([3.1, -0.2, 0.7, 11.0], (8, 1))  # a network that ignores its input


@pytest.mark.parametrize("k", [1e-3, 1, 5, 1000])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(4), np.arange(4)),
        (np.eye(4), [1, 2, 3, 0]),
        (np.zeros((2, 3)), [0, 1]),
        (np.full((2, 3), 7.3), [0, 1]),
        (BALANCED, [0, 1, 2, 3] * 2),
        (np.array([[5.0, 5.0, 1.0], [0.0, 2.0, 2.0]]), [1, 2]),
    ],
    ids=["right", "wrong", "zero", "constant", "the same for all", "right or tied"],
)
def test_where_no_temperature_is_the_best_there_is_none(k: float, logits: Any, labels: Any) -> None:
    assert fit_temperature(k * logits, labels) is None


def test_wrong_but_near_answers_have_a_temperature() -> None:
    """Labels always come second: a flat softmax is too flat, a sharp one wrong."""
    assert fit_temperature(np.array([[3.0, 2, -10], [2, 3, -10]]), [1, 0]) is not None


def test_temperature_takes_half_precision() -> None:
    logits, labels = calibrated_logits()
    half = fit_temperature(logits.astype(np.float16), labels)
    assert half == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


# --- all figures of one set of images -----------------------------------------------------------


def test_measured_figures_are_those_of_the_functions() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float16) * 3, np.arange(50) % 4
    figures, curve = measure(logits, labels, Calibration(bins=7, threshold=0.6), 2.0)
    probabilities = softmax(logits.astype(float), axis=1)
    tempered = softmax(logits.astype(float) / 2, axis=1)
    assert figures == {
        "ece": expected_calibration_error(probabilities, labels, 7),
        "maximum_ce": maximum_calibration_error(probabilities, labels, 7),
        "adaptive_ece": adaptive_calibration_error(probabilities, labels, 7),
        "classwise_ece": classwise_calibration_error(probabilities, labels, 7),
        "brier": brier_score(probabilities, labels),
        "nll": negative_log_likelihood(probabilities, labels),
        "aurc": area_under_risk_coverage(probabilities, labels),
        **confidence_quadrants(probabilities, labels, 0.6),
        "ece_tempered": expected_calibration_error(tempered, labels, 7),
        "nll_tempered": negative_log_likelihood(tempered, labels),
    }
    for key, expected in reliability_curve(probabilities, labels, 7).items():
        np.testing.assert_array_equal(curve[key], expected)


def test_without_a_temperature_nothing_is_tempered() -> None:
    logits, labels = np.eye(3), np.arange(3)
    figures, _ = measure(logits, labels, Calibration(bins=5, threshold=0.5), None)
    assert figures["nll"] > 0 and not any("temper" in name for name in figures)


# --- input --------------------------------------------------------------------------------------


def test_rounded_probabilities_are_accepted() -> None:
    half = softmax(np.random.default_rng(0).normal(size=(50, 100)), axis=1).astype(np.float16)
    labels = np.arange(50)
    for figure in FIGURES:
        assert 0 <= figure(half, labels) < 10
    over = np.array([[1.0009, 0.0]])
    for error in ERRORS:
        assert error(over, [0]) == 0 and error(over, [1]) == 1


BAD = [
    ([0.5, 0.5], [0], r"probabilities have shape \(2,\), must be \(samples, classes\)"),
    (np.zeros((0, 3)), [], r"probabilities have shape \(0, 3\), .* not empty"),
    (np.eye(2), [0], r"labels have shape \(1,\), must be \(2,\)"),
    (np.eye(2), np.eye(2), r"labels have shape \(2, 2\), must be \(2,\)"),
    (np.eye(2), [0.0, 1.0], "labels are float64, must be integers"),
    (np.eye(2), [0, 2], r"labels run from 0 to 2, must be in \[0, 2\)"),
    (np.eye(2), [-1, 1], r"labels run from -1 to 1, must be in \[0, 2\)"),
    (np.array([[1, 0], [np.nan, 1]]), [0, 1], "probabilities of sample 1 are not finite"),
    (np.array([[1, 0], [-0.1, 1.1]]), [0, 1], "probabilities hold -0.1, must not be negative"),
    (np.array([[1, 0], [0.5, 0.502]]), [0, 1], "probabilities of sample 1 sum to 1.002, must be 1"),
]


@pytest.mark.parametrize("probabilities, labels, message", BAD)
def test_bad_predictions_are_refused(probabilities: Any, labels: Any, message: str) -> None:
    calls: list[Callable[..., Any]] = [
        *FIGURES,
        reliability_curve,
        lambda p, y: confidence_quadrants(p, y, 0.5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call(probabilities, labels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="logits of sample 0 are not finite"):
        fit_temperature(np.array([[value, 0.0]]), [0])


@pytest.mark.parametrize("bins", [0, -1, 1.5])
def test_bins_must_be_a_positive_integer(bins: Any) -> None:
    for error in ERRORS:
        with pytest.raises(ValueError, match=f"bins is {bins}, must be an integer of at least 1"):
            error(np.eye(2), [0, 1], bins)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan])
def test_threshold_must_be_a_probability(threshold: float) -> None:
    with pytest.raises(ValueError, match=rf"threshold is {threshold}, must be in \[0, 1\]"):
        confidence_quadrants(np.eye(2), [0, 1], threshold)
