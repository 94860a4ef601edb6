"""The numbers of all models, which of them are bold, and the sentences about them."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from richkd.base.files import write_array, write_json
from richkd.evaluate.seeds import Difference, summarize
from richkd.evaluate.summary import (
    COLUMNS,
    HEADLINE,
    TEACHERS,
    Summary,
    Values,
    best_students,
    differences,
    findings,
    headline,
    meaning_of_shown,
    read_summary,
    results_table,
    signed,
    summary_table,
)

# --- numbers ------------------------------------------------------------------------------------

MODELS = {"teacher": ["seed0"], "clip": ["seed0"], "fused": ["seed0"], "kd": ["seed3", "seed8"]}


def of_seeds(seeds: list[str], *metrics: str) -> dict[str, dict[str, float]]:
    """Figures as a stage writes them: of seed 3 a third, of seed 8 an eighth."""
    values = {seed: 1 / (int(seed[4:]) or 1) for seed in seeds}
    return summarize({seed: dict.fromkeys(metrics, value) for seed, value in values.items()})


@pytest.fixture
def written(here: Path) -> Path:
    """The metrics of three teachers and a student of two seeds; two test images."""
    for model, seeds in MODELS.items():
        scores = of_seeds(seeds, "top1", "top5", "balanced_accuracy", "corrupted_top1", "retained")
        write_json(f"metrics/evaluate/{model}.json", scores)
        clean = of_seeds(seeds, "ece", "nll", "confident_wrong", "aurc", "brier")
        # The second seed has no best temperature.
        clean["temperature"] = {seeds[0]: 1.5}
        corrupted = of_seeds(seeds, "ece", "nll", "confident_wrong", "aurc")
        write_json(f"metrics/calibrate/{model}.json", {"clean": clean, "corrupted": corrupted})
        write_json(f"predictions/{model}/seeds.json", seeds)
        write_array(f"predictions/{model}/test.npy", np.tile(np.eye(2), (len(seeds), 1, 1)))
        trained = of_seeds(seeds, "train_accuracy", "validation_accuracy", "best_test_top1")
        write_json(f"metrics/train/{model}.json", trained)
    mixture = dict.fromkeys(
        "accuracy nll ece confident_correct confident_wrong unsure_correct unsure_wrong "
        "semantic_closeness".split(), 0.25,
    )  # fmt: skip
    fusion = dict.fromkeys(TEACHERS, mixture)
    write_json("metrics/fusion.json", fusion)
    single = {"mean": 0.5, "a {}": 0.5}
    write_json(
        "metrics/cache/clip.json", {"validation_accuracy": 0.75, "single_prompt_accuracy": single}
    )
    return here


def test_a_summary_has_every_metric_seed_by_seed(written: Path) -> None:
    summary = read_summary(list(MODELS))
    third, eighth = 1 / 3, 1 / 8
    expected = Values(
        mean([third, eighth]), stdev([third, eighth]), {"seed3": third, "seed8": eighth}
    )
    student = summary["kd"]
    for metric in (*HEADLINE, "retained", "aurc", "train_accuracy", "best_test_top1", "brier"):
        assert student[metric] == expected
    # The metrics of corrupted images have names of their own.
    assert student["corrupted_ece"] == student["corrupted_nll"] == expected
    assert "corrupted_brier" not in student and "temperature" not in student
    assert student["agreement_fused"] == Values(1.0, 0.0, {"seed3": 1.0, "seed8": 1.0})
    assert "agreement_clip" not in summary["clip"]
    assert summary["fused"]["validation_accuracy"] == Values(0.25, None, {"seed0": 0.25})
    assert summary["clip"]["validation_accuracy"] == Values(0.75, None, {"seed0": 0.75})
    assert "train_accuracy" not in summary["clip"]


def test_the_headline_is_short_and_has_means_alone(written: Path) -> None:
    summary = read_summary(list(MODELS))
    found = headline(summary)
    assert {model: tuple(values) for model, values in found.items()} == dict.fromkeys(
        MODELS, ("top1", "corrupted_top1", "ece", "nll", "confident_wrong")
    )
    assert found["kd"]["top1"] == pytest.approx((1 / 3 + 1 / 8) / 2)
    without = {m: {k: x for k, x in v.items() if "corrupted" not in k} for m, v in summary.items()}
    assert list(headline(without)["kd"]) == ["top1", "ece", "nll", "confident_wrong"]


def test_tables_by_hand(written: Path) -> None:
    summary = read_summary(list(MODELS))
    table = results_table(summary)
    assert list(table) == ["model", "seed", "metric", "value"]
    assert not table.duplicated(["model", "seed", "metric"]).any()
    retained = table[table.metric == "retained"]
    assert retained.model.tolist() == ["teacher", "clip", "fused", "kd", "kd"]
    assert retained.seed.tolist() == [0, 0, 0, 3, 8]
    assert retained.value.tolist() == [1, 1, 1, 1 / 3, 1 / 8]
    assert len(table) == sum(len(v.by_seed) for m in summary.values() for v in m.values())

    row = summary_table(summary).set_index("model").loc["kd"]
    assert row.seeds == 2 and row.aurc_sd == pytest.approx(stdev([1 / 3, 1 / 8]))
    assert list(row.index[:3]) == ["seeds", "validation_accuracy", "validation_accuracy_sd"]
    assert {"retained", "aurc"} < set(row.index) and "brier" not in row.index
    assert pd.isna(summary_table(summary).set_index("model").loc["clip"].top1_sd)


# --- one student against another ----------------------------------------------------------------


def student(*top1: float) -> dict[str, Values]:
    """The accuracies of the seeds 0, 1 and so on; the NLL falls where they rise."""
    by_seed = {f"seed{i}": value for i, value in enumerate(top1)}
    sd = stdev(top1) if len(top1) > 1 else None
    return {
        "top1": Values(mean(top1), sd, by_seed),
        "nll": Values(1 - mean(top1), sd, {seed: 1 - x for seed, x in by_seed.items()}),
    }


STUDENTS: Summary = {
    "fused": student(0.99),
    "ce": student(0.3, 0.5, 0.7),
    "kd": student(0.5, 0.7, 0.9),  # seed by seed 0.2 above ce
    "L": student(0.5, 0.71, 0.9),  # the best
    "F": student(0.6, 0.5, 0.9),
}


def test_students_are_compared_seed_by_seed() -> None:
    found = differences(STUDENTS, "ce")
    assert list(found) == ["kd", "L", "F"] and list(found["kd"]) == ["top1", "nll"]
    # The seeds of each student differ by far more than 0.2, and yet the difference is shown.
    gain = found["kd"]["top1"]
    assert gain == Difference(pytest.approx(0.2), pytest.approx(0, abs=1e-9), 3) and gain.shown
    assert found["kd"]["nll"].mean == pytest.approx(-0.2)
    assert not found["F"]["top1"].shown  # +0.3, 0, +0.2


@pytest.mark.parametrize("metric", ["top1", "nll"])
def test_all_within_one_standard_error_of_the_best_are_bold(metric: str) -> None:
    """kd is 0.0033 ± 0.0033 behind L, F 0.037 ± 0.094; ce is 0.203 ± 0.003 behind."""
    assert best_students(STUDENTS, metric) == {"L", "kd", "F"}
    further = STUDENTS | {"F": student(0.45, 0.6, 0.87)}  # 0.063 ± 0.024 behind
    assert best_students(further, metric) == {"L", "kd"}


def test_of_one_seed_the_best_and_its_equals_are_bold() -> None:
    one = {"ce": student(0.5), "kd": student(0.625), "L": student(0.624), "F": student(0.625)}
    assert best_students(one, "top1") == {"kd", "F"}


def test_it_is_said_how_often_chance_alone_is_shown() -> None:
    assert "no standard error, so no difference is shown" in meaning_of_shown(1)
    for seeds, percent in ((3, 18), (5, 12), (8, 9)):
        assert percent == round(200 * t.sf(2, seeds - 1))
        assert f"With {seeds} seeds, chance alone goes beyond two in {percent} % of" in (
            meaning_of_shown(seeds)
        )


# --- sentences ----------------------------------------------------------------------------------


def numbers(top1: float, corrupted: float) -> dict[str, Values]:
    figures = {"top1": top1, "validation_accuracy": 0.88, "corrupted_top1": corrupted}
    return {name: Values(value, None, {"seed0": value}) for name, value in figures.items()}


PARTS = {"teacher": numbers(0.9, 0.5), "clip": numbers(0.8, 0.4)}


@pytest.mark.parametrize(
    ("top1", "corrupted", "clean_verdict", "corrupted_verdict"),
    [
        (0.95, 0.3, "above both its parts", "below both its parts"),
        (0.85, 0.45, "not above the better of its parts", "not above the better of its parts"),
    ],
)
def test_the_fused_teacher_is_not_flattered(
    top1: float, corrupted: float, clean_verdict: str, corrupted_verdict: str
) -> None:
    summary = PARTS | {"fused": numbers(top1, corrupted), "L": numbers(0.9, 0.2)}
    said, _ = findings(summary, "L", "digits")
    assert f"{clean_verdict} on clean images ({100 * top1:.1f} % against 90.0 %" in said
    assert f"{corrupted_verdict} on corrupted images ({100 * corrupted:.1f} %" in said


@pytest.mark.parametrize(
    ("dataset", "validated", "caution"),
    [
        (
            "digits", True,
            "images, which share scans within a split: L is +2.0 points on test against validation "
            "images. Differences",
        ),
        ("cifar100", True, "images: L is +2.0 points on test against validation images. Diff"),
        ("cifar100", False, "images. Differences"),
    ],
)  # fmt: skip
def test_what_seeds_do_not_say_is_said(dataset: str, validated: bool, caution: str) -> None:
    summary: dict[str, Any] = PARTS | {"fused": numbers(0.9, 0.4), "L": numbers(0.9, 0.2)}
    if not validated:
        del summary["L"]["validation_accuracy"]
    *_, said = findings(summary, "L", dataset)
    assert said.startswith(f"The spread over seeds says nothing about the choice of {caution}")


def test_rounded_zero_has_no_minus() -> None:
    assert signed(-0.04) == "+0.0"
    assert signed(-0.06) == "−0.1"
    assert signed(-0.4, 0) == "+0"


def test_every_column_says_what_it_is_of() -> None:
    for metric, column in COLUMNS.items():
        assert ("corrupt" in column.heading or metric == "mce") == (
            metric in ("corrupted_top1", "retained", "mce")
        )
