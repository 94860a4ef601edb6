"""What the choices gain: their figures, their intervals, and the one that is shipped."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from two_teachers import better_by_class, validation

from richkd import params
from richkd.base.errors import InputError
from richkd.evaluate import calibration
from richkd.evaluate.summary import ALPHA_COLUMNS, CHOICE_COLUMNS, CHOICE_METRICS
from richkd.teachers.align import align
from richkd.teachers.diagnose import PAPER_ALPHA, diagnose
from richkd.teachers.fusion import Recipe

TABLES = {"teacher": "1", "clip": "2"}


def settings(**fusion):
    values = {"align": "none", "alpha": 0.4, "lam": 0.3, "per_class": False}
    values |= {"seen_validation": "refuse", "grid": (0.0, 0.25, 1.0)} | fusion
    return SimpleNamespace(
        fusion=params.Fusion(**values), calibration=params.Calibration(bins=15, threshold=0.7)
    )


def run(found, **fusion):
    classes = np.eye(found.teacher.shape[1], dtype=np.float32)
    return diagnose(settings(**fusion), TABLES, found, classes)


@pytest.fixture(scope="module")
def found():
    return validation((0.5, 0.8))


def test_a_number_stays_a_number(found):
    diagnosis = run(found)
    assert diagnosis.recipe == Recipe(0.4, 0.3, {"teacher": 1.0, "clip": 1.0}, TABLES)
    rows = pd.DataFrame(diagnosis.tables["choices"])
    assert rows[["align", "chosen"]].values.tolist() == [
        [alignment, chosen]
        for alignment in ("none", "temperature", "standardize")
        for chosen in ("given", "auto")
    ]
    assert rows.columns.tolist() == list(CHOICE_COLUMNS)
    assert rows.shipped.tolist() == [True, *[False] * 5]


@pytest.mark.parametrize("alignment", ["none", "temperature", "standardize"])
def test_the_shipped_choice_is_the_one_that_is_named(found, alignment):
    diagnosis = run(found, align=alignment, alpha="auto", lam="auto")
    rows = pd.DataFrame(diagnosis.tables["choices"])
    assert rows.alpha[0] == PAPER_ALPHA and rows.chosen[0] == "given"
    (row,) = rows[rows.shipped].to_dict("records")
    assert (row["align"], row["chosen"]) == (alignment, "auto")
    assert row["alpha_low"] < row["alpha"] == diagnosis.recipe.alpha < row["alpha_high"]
    assert diagnosis.recipe.lam == diagnosis.recipe.alpha
    assert diagnosis.recipe.scales == align(diagnosis.recipe, alignment, found).scales
    assert diagnosis.recipe.standardize == (alignment == "standardize")
    lines = diagnosis.lines[-1].splitlines()
    assert [line.split()[:2] for line in lines if "->" in line] == [["->", alignment]]


def test_figures_are_those_of_the_room_evaluate(found):
    """Each row's values against `calibration.measure`; the gains stand in their intervals."""
    diagnosis = run(found)
    plain = Recipe(0.4, 0.3, {"teacher": 1.0, "clip": 1.0}, TABLES)
    reference = diagnosis.tables["choices"][0]
    for row in diagnosis.tables["choices"]:
        recipe = align(plain, row["align"], found)._replace(alpha=row["alpha"])
        mixed = found.mixed(recipe)
        temperature = calibration.fit_temperature(mixed, found.labels)
        figures, _ = calibration.measure(mixed, found.labels, settings().calibration, temperature)
        figures["accuracy"] = np.mean(mixed.argmax(1) == found.labels)
        assert {key: row[key] for key in CHOICE_METRICS} == pytest.approx(
            {key: figures[key] for key in CHOICE_METRICS}
        )
        assert row["temperature"] == temperature
        for key in CHOICE_METRICS:
            assert row[f"{key}_gain"] == pytest.approx(row[key] - reference[key], abs=1e-12)
            ends = row[f"{key}_gain_low"], row[f"{key}_gain_high"]
            assert ends[0] <= ends[1]
            if key != "ece":  # on a draw the gaps of the bins add up to more
                assert ends[0] - 1e-12 <= row[f"{key}_gain"] <= ends[1] + 1e-12
    assert reference["nll_gain_low"] == reference["nll_gain_high"] == 0


def test_the_interval_of_an_accuracy_is_that_of_its_standard_error(found):
    rows = run(found, alpha=1.0).tables["choices"]
    row = next(row for row in rows if row["chosen"] == "auto")
    plain = Recipe(1.0, 0.3, {"teacher": 1.0, "clip": 1.0}, TABLES)
    right = [
        found.mixed(plain._replace(alpha=alpha)).argmax(1) == found.labels
        for alpha in (row["alpha"], 1.0)
    ]
    error = np.std(right[0].astype(float) - right[1], ddof=1) / np.sqrt(len(found.labels))
    width = row["accuracy_gain_high"] - row["accuracy_gain_low"]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_the_curve_has_each_alignment(found):
    curve = pd.DataFrame(run(found).tables["alpha"])
    assert set(curve.columns) == set(ALPHA_COLUMNS)
    assert curve.groupby("align").alpha.apply(list).to_dict() == {
        alignment: [0.0, 0.25, 1.0] for alignment in ("none", "temperature", "standardize")
    }
    ends = curve[curve.alpha == 1]
    assert ends.accuracy.nunique() == 1
    # At the best temperature a scale does not matter.
    assert np.ptp(ends.nll_tempered[ends["align"] != "standardize"]) < 1e-6
    raw = softmax(found.teacher.astype(float), axis=1)
    assert ends.nll.iloc[0] == calibration.negative_log_likelihood(raw, found.labels)


def test_an_alpha_a_class_is_shipped_where_it_wins():
    found = better_by_class(images=1000)
    diagnosis = run(found, alpha="auto", per_class=True)
    assert len(diagnosis.recipe.class_alphas) == 6
    rows = {(row["align"], row["chosen"]): row for row in diagnosis.tables["choices"]}
    row = rows["none", "per class"]
    assert row["shipped"] and row["alpha"] == rows["none", "auto"]["alpha"]
    assert row["nll_tempered_gain_high"] < rows["none", "auto"]["nll_tempered_gain"]
    assert diagnosis.lines[0].endswith("it wins")
    assert run(found, alpha="auto").recipe.class_alphas == ()


def test_an_alpha_a_class_that_does_not_win_is_not_used(found):
    diagnosis = run(found, alpha="auto", per_class=True)
    assert diagnosis.recipe == run(found, alpha="auto").recipe
    assert "per class" not in {row["chosen"] for row in diagnosis.tables["choices"]}
    assert diagnosis.lines[0].startswith("an alpha a class changes the NLL of images that it was ")
    assert diagnosis.lines[0].endswith("(standard error): the common alpha is kept")


def test_what_is_not_possible_is_left_out_and_said(found):
    """A teacher that is always right has no best temperature and no alphas for the classes."""
    right = found._replace(teacher=9 * np.eye(5, dtype=np.float32)[found.labels])
    diagnosis = run(right, alpha="auto")
    assert {row["align"] for row in diagnosis.tables["choices"]} == {"none", "standardize"}
    assert "fusion.align: temperature is not possible" in "".join(diagnosis.lines)
    assert diagnosis.lines[0].startswith("an alpha a class: too few wrong answers")
    with pytest.raises(InputError, match="^fusion.align: temperature is not possible"):
        run(right, align="temperature")


def test_two_wrong_teachers_have_the_given_alpha_alone(found):
    wrong = found._replace(teacher=-found.teacher, clip=-found.clip)
    diagnosis = run(wrong)
    assert {row["chosen"] for row in diagnosis.tables["choices"]} == {"given"}
    row = diagnosis.tables["choices"][0]
    assert row["temperature"] is None and np.isnan(row["nll_tempered"])
    assert "fusion.alpha: auto is not possible" in "".join(diagnosis.lines)
    with pytest.raises(InputError, match="^fusion.alpha: auto is not possible, only a number"):
        run(wrong, alpha="auto")
