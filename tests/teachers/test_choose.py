"""The alpha chosen on validation images: known answers, its spread, an alpha for each class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from two_teachers import better_by_class, validation

from richkd.base.errors import InputError
from richkd.evaluate.calibration import fit_temperature
from richkd.teachers import choose
from richkd.teachers.align import align
from richkd.teachers.choose import (
    bootstrap_counts,
    choose_alpha,
    choose_with_spread,
    class_alphas,
    held_out_gain,
)
from richkd.teachers.fusion import Recipe

GRID = np.linspace(0, 1, 41)
PLAIN = Recipe(0.7, 0.7, {"teacher": 1.0, "clip": 1.0}, {})


def nll(logits, labels):
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


def by_grid(found, tempered):
    """The alpha of the lowest NLL, with a temperature fitted for each alpha or with none."""
    scores = []
    for alpha in GRID:
        mixed = (alpha * found.teacher + (1 - alpha) * found.clip).astype(float)
        temperature = fit_temperature(mixed, found.labels) if tempered else 1
        scores.append(nll(mixed / temperature, found.labels))
    return GRID[np.argmin(scores)]


# --- alpha --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.9), (0.8, 0.1)])
def test_alpha_is_that_of_the_probabilities_that_drew_the_labels(weights):
    found = validation(weights, images=20_000)
    assert choose_alpha(found) == pytest.approx(weights[0] / sum(weights), abs=0.02)


@pytest.mark.parametrize(("weights", "alpha"), [((0.0, 1.0), 0), ((1.0, 0.0), 1)])
def test_a_teacher_that_knows_nothing_gets_no_share(weights, alpha):
    found = validation(weights, images=5000)
    assert choose_alpha(found) == pytest.approx(alpha, abs=0.02)


@pytest.mark.parametrize(("weights", "alpha"), [((-0.3, 1.0), 0), ((1.0, -0.3), 1)])
def test_a_teacher_that_is_wrong_gets_exactly_no_share(weights, alpha):
    chosen = choose_with_spread(validation(weights, images=5000))
    assert chosen == (alpha, alpha, alpha)


def test_of_two_copies_any_alpha_is_the_best():
    found = validation()
    alpha, low, high = choose_with_spread(found._replace(clip=found.teacher))
    assert 0 <= low <= alpha <= high <= 1


def test_alpha_is_the_lowest_point_of_the_tempered_curve():
    for seed in range(3):
        found = validation((0.7, 0.4), seed=seed)
        assert choose_alpha(found) == pytest.approx(by_grid(found, tempered=True), abs=0.013)


def test_plain_nll_picks_a_wrong_alpha_for_standardized_logits():
    """With a deviation of 1 they are too flat: plain NLL prefers the teacher of large margins."""
    rng = np.random.default_rng(0)
    labels = rng.integers(50, size=500)
    right = np.arange(500), labels
    teacher, clip = rng.normal(size=(2, 500, 50))
    teacher[right] += 4.5
    # CLIP is sure where it knows the class, in 85 % of the images; elsewhere it guesses.
    clip *= 0.3
    clip[right] += np.where(rng.random(500) < 0.85, 4, 0)
    found = validation()._replace(teacher=teacher, clip=clip, labels=labels)
    standard = found.scaled(PLAIN._replace(standardize=True))
    best, plain = by_grid(standard, tempered=True), by_grid(standard, tempered=False)
    assert abs(best - plain) > 0.15
    assert choose_alpha(standard) == pytest.approx(best, abs=0.013)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 20), st.floats(0.05, 20))
def test_scales_change_alpha_so_that_the_mixture_stays(teacher, clip):
    found = validation((0.5, 0.8))
    other = found._replace(teacher=teacher * found.teacher, clip=clip * found.clip)
    share = (alpha := choose_alpha(found)) / teacher, (1 - alpha) / clip
    assert choose_alpha(other) == pytest.approx(share[0] / sum(share), abs=0.0021)


@pytest.mark.parametrize("factor", [0.01, 100])
def test_a_common_scale_leaves_alpha_and_its_spread(factor):
    found = validation((0.5, 0.8))
    other = found._replace(teacher=factor * found.teacher, clip=factor * found.clip)
    assert choose_with_spread(other) == pytest.approx(choose_with_spread(found), abs=0.001)


def test_alignment_by_temperature_chooses_the_same_mixture_as_none():
    found = validation((0.5, 0.8))._replace()
    raw, aligned = PLAIN, align(PLAIN, "temperature", found)
    mixed = []
    for recipe in (raw, aligned):
        chosen = recipe._replace(alpha=choose_alpha(found.scaled(recipe)))
        logits = found.mixed(chosen)
        mixed.append(logits / fit_temperature(logits, found.labels))
    np.testing.assert_allclose(*mixed, atol=0.03)


def test_where_all_answers_can_be_right_there_is_an_alpha():
    found = validation()
    right = 3 * np.eye(5)[found.labels]
    alpha, low, high = choose_with_spread(found._replace(teacher=right))
    assert 0.5 < alpha <= 1 and 0 <= low <= high <= 1


def test_teachers_that_are_both_wrong_have_no_alpha():
    with pytest.raises(InputError) as caught:
        choose_alpha(validation((-1.0, -1.0)))
    assert str(caught.value) == (
        "fusion.alpha: auto is not possible, only a number: no mixture of both teachers knows the "
        "labels of the validation images better than guessing does"
    )


# --- its spread ---------------------------------------------------------------------------------


def test_the_spread_is_that_of_fits_to_each_draw(monkeypatch):
    monkeypatch.setattr(choose, "DRAWS", 60)
    found = validation((0.5, 0.8))
    chosen = choose_with_spread(found)
    assert chosen == choose_with_spread(found)
    fits = []
    for counts in bootstrap_counts(len(found.labels)):
        drawn = np.repeat(np.arange(len(counts)), counts.astype(int))
        fits.append(choose_alpha(found.of(drawn)))
    assert chosen[1:] == pytest.approx(np.quantile(fits, [0.025, 0.975]), abs=0.001)
    assert 0.02 < np.std(fits)


def test_draws_are_of_as_many_images():
    counts = bootstrap_counts(37)
    assert counts.shape == (200, 37) and (counts.sum(1) == 37).all()
    assert len(np.unique(counts, axis=0)) == 200


# --- an alpha for each class --------------------------------------------------------------------


def fitted(found):
    alpha = choose_alpha(found)
    return alpha, fit_temperature(alpha * found.teacher + (1 - alpha) * found.clip, found.labels)


def test_an_alpha_a_class_wins_where_each_teacher_knows_other_classes():
    found = better_by_class()
    alphas = class_alphas(found, *fitted(found))
    assert alphas[:3].min() > alphas[3:].max() + 0.2 and 0 <= alphas.min() <= alphas.max() <= 1
    gain, error = held_out_gain(found)
    assert gain < -5 * error


def test_an_alpha_a_class_does_not_win_where_the_teachers_know_all_classes_alike():
    for seed in range(5):
        gain, error = held_out_gain(validation(images=600, classes=20, seed=seed))
        assert gain >= -2 * error


def test_the_left_out_image_is_judged_without_its_own_step(monkeypatch):
    """The closed form against steps from all images but one, at two ridges."""
    found, classes = better_by_class(images=40), np.eye(6)
    alpha, temperature = fitted(found)
    monkeypatch.setattr(choose, "RIDGES", np.array([0.01, 1.0]))
    difference = (found.teacher - found.clip).astype(float) / temperature
    difference -= difference.mean(1)[:, None]
    probabilities = np.exp(log_softmax(found.clip / temperature + alpha * difference, axis=1))
    slopes = (probabilities - classes[found.labels]) * difference
    bends = probabilities * difference**2

    def step(kept, ridge):
        bend = bends[kept].sum(0) + ridge * bends.sum(0).mean()
        return np.clip(alpha - slopes[kept].sum(0) / bend, 0, 1)

    losses = {}
    for ridge in (0.01, 1.0):
        mixed = [
            found.clip[i] / temperature + step(np.arange(40) != i, ridge) * difference[i]
            for i in range(40)
        ]
        losses[ridge] = nll(np.array(mixed), found.labels)
    best = min(losses, key=losses.get)
    assert losses[best] < nll(found.clip / temperature + alpha * difference, found.labels)
    expected = step(np.full(40, True), best)
    np.testing.assert_allclose(class_alphas(found, alpha, temperature), expected, atol=0.00051)


@pytest.mark.parametrize("images", [1, 2])
def test_halves_with_too_little_to_fit_say_nothing(images):
    found = validation((5.0, 5.0), images=400)
    mixed = found.teacher + found.clip
    right = np.flatnonzero(mixed.argmax(1) == found.labels)[:images]
    assert held_out_gain(found.of(right)) is None


def test_halves_of_wrong_answers_say_nothing():
    found = validation()
    assert held_out_gain(found._replace(teacher=-found.teacher, clip=-found.clip)) is None
