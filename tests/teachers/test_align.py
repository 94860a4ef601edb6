"""Both teachers on one scale: what stays, what changes, and where that is not possible."""

import numpy as np
import pytest
import torch
from two_teachers import validation

from richkd import losses
from richkd.base.errors import InputError
from richkd.evaluate.calibration import fit_temperature
from richkd.teachers.align import ALIGNMENTS, align
from richkd.teachers.choose import choose_alpha
from richkd.teachers.fusion import Recipe, standardize

PLAIN = Recipe(0.4, 0.4, {"teacher": 1.0, "clip": 1.0}, {})


def scaled(found, teacher, clip):
    return found._replace(teacher=found.teacher * teacher, clip=found.clip * clip)


@pytest.mark.parametrize("alignment", ["temperature", "standardize"])
def test_an_aligned_mixture_does_not_know_the_scales(alignment):
    """Logits times 0.2 and 5: the aligned mixture stays, the raw one becomes CLIP alone."""
    found = validation()
    other = scaled(found, 0.2, 5)
    before, after = (x.mixed(align(PLAIN, alignment, x)) for x in (found, other))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    raw = other.mixed(PLAIN)
    correlation = np.corrcoef(raw.ravel(), other.clip.ravel())[0, 1]
    assert correlation > 0.999
    assert np.corrcoef(after.ravel(), other.clip.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("alignment", ["temperature", "standardize"])
def test_a_common_factor_changes_the_sharpness_alone(alignment):
    found = validation()
    before, after = (x.mixed(align(PLAIN, alignment, x)) for x in (found, scaled(found, 3, 3)))
    np.testing.assert_allclose(after, 3 * before, rtol=1e-4, atol=1e-4)


def test_temperatures_by_hand():
    found = validation((1.0, 0.5))
    scales = align(PLAIN, "temperature", found).scales
    fitted = [fit_temperature(x, found.labels) for x in (found.teacher, found.clip)]
    assert scales["teacher"] * fitted[0] == pytest.approx(scales["clip"] * fitted[1])
    assert scales["teacher"] * scales["clip"] == pytest.approx(1)


def test_standardized_logits_are_as_wide_as_they_were():
    found = validation()
    found = scaled(found, 1, 4)
    recipe = align(PLAIN, "standardize", found)
    assert recipe.standardize and recipe.scales["teacher"] == recipe.scales["clip"]
    wide = np.std(found.teacher, axis=1, ddof=1).mean(), np.std(found.clip, axis=1, ddof=1).mean()
    assert recipe.scales["clip"] == pytest.approx(np.sqrt(wide[0] * wide[1]))


def test_standardized_as_the_loss_has_it():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    expected = losses.standardize(logits)
    torch.testing.assert_close(standardize(logits), expected)
    np.testing.assert_allclose(standardize(logits.numpy()), expected, rtol=1e-5, atol=1e-6)
    assert standardize(logits.numpy()).dtype == np.float32
    assert (standardize(torch.ones(2, 3)) == 0).all()


def test_none_takes_the_logits_as_they_are():
    other = Recipe(0.4, 0.4, {"teacher": 2.0, "clip": 0.5}, {}, standardize=True)
    assert align(other, "none", validation()) == PLAIN


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("alphas", [(), (0.1, 0.9, 0.4, 0.0, 1.0)])
def test_a_number_added_to_a_row_changes_no_softmax(alignment, alphas):
    """Tables and predictions are kept up to a number that is added to all logits of a row."""
    found = validation()
    recipe = align(PLAIN, alignment, found)._replace(class_alphas=alphas)
    rows = np.random.default_rng(1).normal(size=(2, len(found.labels), 1)).astype(np.float32)
    moved = found._replace(teacher=found.teacher + rows[0], clip=found.clip + rows[1])
    before, after = (x.mixed(recipe) for x in (found, moved))
    before, after = (x - x.mean(1)[:, None] for x in (before, after))
    np.testing.assert_allclose(after, before, atol=2e-5)
    again = align(PLAIN, alignment, moved)
    assert again.scales == pytest.approx(recipe.scales, rel=1e-5)
    assert choose_alpha(moved) == pytest.approx(choose_alpha(found), abs=0.001)


@pytest.mark.parametrize("name", ["the teacher", "CLIP"])
def test_a_teacher_without_a_best_temperature_is_named(name):
    found = validation()
    right = 9 * np.eye(5, dtype=np.float32)[found.labels]
    found = found._replace(**{"teacher" if name == "the teacher" else "clip": right})
    with pytest.raises(InputError) as caught:
        align(PLAIN, "temperature", found)
    assert str(caught.value) == (
        "fusion.align: temperature is not possible, only none or standardize: for "
        f"{name} on the validation images there is no best temperature: all answers are right, or "
        "the labels have no larger logits than other classes"
    )


def test_a_teacher_that_answers_nothing_cannot_be_standardized():
    found = validation()
    with pytest.raises(
        InputError, match="^fusion.align: standardize is not possible, only none or"
    ):
        align(PLAIN, "standardize", found._replace(clip=np.ones_like(found.clip)))
