"""Figures from saved logits, against scikit-learn and cases worked by hand."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchvision.models import AlexNet_Weights

from richkd.base.errors import InputError
from richkd.base.files import replacing, write_array, write_json
from richkd.data import corruptions
from richkd.data.dataset import CORRUPTED, SHIFTED, Split, save_split
from richkd.engine import accuracy
from richkd.evaluate.calibration import confidence_quadrants
from richkd.evaluate.scores import (
    ALEXNET,
    ALEXNET_CLEAN,
    accuracy_among,
    agreements,
    class_accuracies,
    class_table,
    corrupted_sets,
    hit_rate,
    limit,
    mce,
    read_seeds,
    relative_mce,
    score,
    shifted_found,
    shifted_sets,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@given(st.integers(1, 40), st.integers(3, 9), st.data())
def test_hit_rate_is_sklearns_top_k_accuracy(
    samples: int, classes: int, data: st.DataObject
) -> None:
    top = data.draw(st.integers(1, classes - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits, labels = rng.normal(size=(samples, classes)), rng.integers(classes, size=samples)
    expected = top_k_accuracy_score(labels, logits, k=top, labels=np.arange(classes))
    assert hit_rate(logits, labels, top) == pytest.approx(expected)
    assert hit_rate(logits, labels, classes) == 1


@quick
@given(st.integers(1, 40), st.integers(2, 9), st.data())
def test_accuracy_among_all_classes_is_top_1(
    samples: int, classes: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits, labels = rng.normal(size=(samples, classes)), rng.integers(classes, size=samples)
    assert accuracy_among(logits, labels, range(classes)) == hit_rate(logits, labels, 1)


def test_accuracy_among_some_classes_by_hand() -> None:
    logits = np.array([[9, 1, 2, 3], [9, 3, 2, 1], [0, 1, 2, 9], [0, 5, 9, 4.0]])
    labels = np.array([3, 3, 1, 1])
    # Of classes 1 and 3 the largest are 3, 1, 3, 1: class 0 and 2 do not compete.
    assert accuracy_among(logits, labels, [1, 3]) == accuracy_among(logits, labels, [3, 1]) == 0.5
    assert accuracy_among(logits, labels, range(4)) == 0
    assert accuracy_among(logits[2:], labels[2:], [1]) == 1


def test_of_equal_logits_the_first_class_is_the_answer() -> None:
    """All ways to say how often a model is right agree to the image on logits rounded by bf16."""
    rng = np.random.default_rng(0)
    rough = torch.from_numpy(rng.normal(size=(3000, 10)).astype(np.float32)).bfloat16().float()
    logits, labels = rough.numpy(), rng.integers(10, size=3000)
    best = np.sort(logits, axis=1)
    assert (best[:, -1] == best[:, -2]).sum() > 20  # ties decide

    right = float((logits.argmax(1) == labels).mean())
    assert right == (rough.argmax(1).numpy() == labels).mean()
    assert right == hit_rate(logits, labels, 1) == accuracy_among(logits, labels, range(9, -1, -1))
    quadrants = confidence_quadrants(softmax(logits.astype(float), axis=1), labels, 0.5)
    assert right == pytest.approx(quadrants["confident_correct"] + quadrants["unsure_correct"])
    # Sorted by falling logits, equal ones by class.
    order = np.argsort(-logits, axis=1, kind="stable")
    for top in range(1, 11):
        expected = (order[:, :top] == labels[:, None]).any(1).mean()
        assert hit_rate(logits, labels, top) == expected
        assert accuracy(rough, torch.from_numpy(labels), top) == expected


def test_constant_logits_are_the_answer_0() -> None:
    logits, labels = np.zeros((4, 3)), np.array([0, 1, 2, 2])
    assert [hit_rate(logits, labels, top) for top in (1, 2, 3)] == [0.25, 0.5, 1]
    found = [accuracy(torch.zeros(4, 3), torch.from_numpy(labels), top) for top in (1, 2, 3)]
    assert found == [0.25, 0.5, 1]
    assert accuracy_among(logits, labels, [2, 1]) == 0.25


@pytest.mark.filterwarnings("error")
def test_logits_of_a_model_that_diverged_are_clipped() -> None:
    logits = np.array([[1e38, -np.inf, np.nan, 2.0], [3.0, np.inf, -5e36, 0]], np.float32)
    assert limit(logits) == 4
    big = np.float32(1e37)
    np.testing.assert_array_equal(logits, np.float32([[big, -big, -big, 2], [3, big, -5e36, 0]]))
    assert limit(logits) == 0
    logits -= logits.max(-1, keepdims=True)
    assert limit(logits, 65504.0) == 6  # of each row but the largest, which is 0
    half = logits.astype(np.float16)
    assert np.isfinite(half).all() and half.argmax(1).tolist() == [0, 1]


def test_logits_in_range_stay_as_they_are() -> None:
    logits = np.float32([[-65504, 65504, 0]])
    assert limit(logits, 65504.0) == 0 and logits.tolist() == [[-65504, 65504, 0]]
    assert limit(np.empty((3, 0, 10), np.float32)) == 0


# --- mean corruption error ----------------------------------------------------------------------


def test_alexnets_errors_are_the_published_ones(shared: Path) -> None:
    text = (shared / "imagenet-c.md").read_text()
    said = text[text.index("AlexNet's mean error") :].split("\n")[0]
    numbers = {name: float(x) for name, x in re.findall(r"([a-z]+_?[a-z]*) (\.\d+)", said)}
    assert ALEXNET == numbers and set(ALEXNET) == set(corruptions.BENCHMARK)


def test_mean_corruption_error_by_hand() -> None:
    assert mce(ALEXNET) == pytest.approx(1)
    halved = {name: error / 2 for name, error in ALEXNET.items()}
    assert mce(halved) == pytest.approx(0.5)
    # Each corruption counts alike, whatever AlexNet's error is.
    assert mce(halved | {"brightness": 0.564592}) == pytest.approx((14 * 0.5 + 1) / 15)
    assert mce(halved | {"speckle_noise": 0.9}) == pytest.approx(0.5)
    assert mce(dict.fromkeys(ALEXNET, 0.3)) == pytest.approx(
        np.mean([0.3 / x for x in ALEXNET.values()])
    )


def test_relative_corruption_error_by_hand() -> None:
    assert relative_mce(ALEXNET, ALEXNET_CLEAN) == pytest.approx(1)
    # A model that corruption does not hurt has an error of 0, however often it is wrong.
    assert relative_mce(dict.fromkeys(ALEXNET, 0.7), 0.7) == pytest.approx(0)
    added = {name: 0.1 + (error - ALEXNET_CLEAN) / 4 for name, error in ALEXNET.items()}
    assert relative_mce(added, 0.1) == pytest.approx(0.25)
    # Each corruption counts alike.
    twice = added | {"fog": 0.1 + (ALEXNET["fog"] - ALEXNET_CLEAN) / 2}
    assert relative_mce(twice, 0.1) == pytest.approx((14 * 0.25 + 0.5) / 15)


def test_alexnets_clean_error_is_that_of_its_published_weights() -> None:
    published = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert pytest.approx(1 - published / 100) == ALEXNET_CLEAN


@pytest.mark.parametrize("missing", ["fog", "jpeg_compression"])
def test_without_all_corruptions_there_is_none(missing: str) -> None:
    for errors in ({name: 0.5 for name in ALEXNET if name != missing}, {}):
        assert mce(errors) is relative_mce(errors, 0.3) is None


# --- classes, and models beside each other ------------------------------------------------------


@quick
@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 999))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_mean_over_classes_is_sklearns_balanced_accuracy(
    samples: int, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(classes, size=(2, samples))
    found = class_accuracies(answers, labels, classes)
    assert np.nanmean(found) == pytest.approx(balanced_accuracy_score(labels, answers))
    assert np.isnan(found).sum() == classes - len(np.unique(labels))


def test_accuracies_of_classes_by_hand() -> None:
    found = class_accuracies(np.array([0, 1, 1, 1, 3]), np.array([0, 0, 1, 1, 1]), 4)
    np.testing.assert_array_equal(found, [0.5, 2 / 3, np.nan, np.nan])


def test_models_beside_each_other_by_hand(here: Path) -> None:
    labels = np.array([0, 1, 2, 2])
    save_answers("teacher", [[0, 1, 2, 0]])
    save_answers("clip", [[0, 0, 2, 2]])
    save_answers("kd", [[0, 1, 2, 2], [1, 1, 1, 0]], ["seed0", "seed3"])
    teachers = ("teacher", "clip")
    assert agreements(["teacher", "clip", "kd"], teachers) == {
        "teacher": {"clip": {"mean": 0.5, "seed0": 0.5}},
        "clip": {"teacher": {"mean": 0.5, "seed0": 0.5}},
        "kd": {
            "teacher": {
                "mean": 0.625, "sd": pytest.approx(math.sqrt(2) / 8), "seed0": 0.75, "seed3": 0.5,
            },
            "clip": {
                "mean": 0.375, "sd": pytest.approx(3 * math.sqrt(2) / 8), "seed0": 0.75, "seed3": 0,
            },
        },
    }  # fmt: skip
    table = class_table(["teacher", "kd"], labels, ["a", "b", "c", "of no image"])
    expected = pd.DataFrame(
        {
            "class": ["a", "b", "c", "of no image"],
            "images": [1, 1, 2, 0],
            "teacher": [1, 1, 0.5, np.nan],
            "kd": [0.5, 1, 0.5, np.nan],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


# --- which images were found ---------------------------------------------------------------------


def test_skipped_corruptions_are_none(here: Path) -> None:
    assert corrupted_sets(["fog", "snow"]) == ["fog", "snow"]
    with replacing(CORRUPTED / "skipped.txt") as part:
        part.write_text("nothing is at x\n")
    assert corrupted_sets(["fog", "snow"]) == []


def test_shifted_sets_that_were_found(here: Path) -> None:
    sets = {
        "a": {"skipped": "nothing is at a"},
        "b": {"images": 3, "classes": [0]},
        "c": {"skipped": "nothing is at c"},
        "d": {"images": 3, "classes": [1, 2]},
    }
    write_json(SHIFTED / "sets.json", sets)
    assert shifted_sets() == sets and shifted_found() == ["b", "d"]


# --- scores -------------------------------------------------------------------------------------


@pytest.fixture
def no_shifted_sets(here: Path) -> Path:
    """The working folder of an experiment without further test sets."""
    write_json(SHIFTED / "sets.json", {})
    return here


def one_hot(answers: np.ndarray, classes: int) -> np.ndarray:
    """Logits whose largest is the answer, in front of the classes in their order."""
    logits: np.ndarray = np.eye(classes)[answers] * 10 - np.arange(classes)
    return logits


def save_answers(name: str, answers: list[list[int]], seeds: Sequence[str] = ("seed0",)) -> None:
    """The predictions of a model of four classes, without corrupted images."""
    write_json(f"predictions/{name}/seeds.json", list(seeds))
    write_array(f"predictions/{name}/test.npy", one_hot(np.array(answers), 4))


def save_predictions(clean: np.ndarray, corrupted: np.ndarray) -> None:
    """Save the logits of the model `x` with the seeds 1, 2 and so on."""
    write_json("predictions/x/seeds.json", [f"seed{i + 1}" for i in range(len(clean))])
    write_array("predictions/x/test.npy", clean)
    write_array("predictions/x/corrupted.npy", corrupted)


def test_score_writes_accuracies_by_run_corruption_and_severity(no_shifted_sets: Path) -> None:
    labels = np.array([0, 1, 2, 6])
    # Seed 1 is right on three of the clean images, seed 2 on two.
    clean = one_hot(np.array([[0, 1, 2, 5], [0, 1, 0, 0]]), 7)
    answers = np.zeros((2, 2, 3, 4), int)  # right on image 0 alone …
    answers[0, 1, 2] = labels  # … but for seed 1 under the last corruption and severity
    answers[1, 0, 0] = 3
    save_predictions(clean.astype(np.float32), one_hot(answers, 7).astype(np.float16))
    score("x", labels, ["snow", "fog"], [1, 3, 5])

    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert list(metrics) == ["top1", "top5", "balanced_accuracy", "corrupted_top1", "retained"]
    assert metrics["top1"] == {
        "mean": 0.625, "sd": pytest.approx(math.sqrt(2) / 8), "seed1": 0.75, "seed2": 0.5,
    }  # fmt: skip
    # Label 6 is last of all: among five only as the answer.
    assert (metrics["top5"]["seed1"], metrics["top5"]["seed2"]) == (0.75, 0.75)
    assert metrics["corrupted_top1"]["seed1"] == pytest.approx((5 * 0.25 + 1) / 6)
    assert metrics["corrupted_top1"]["seed2"] == pytest.approx(5 * 0.25 / 6)

    assert metrics["retained"]["seed1"] == pytest.approx((5 * 0.25 + 1) / 6 / 0.75)
    assert metrics["retained"]["seed2"] == pytest.approx(5 * 0.25 / 6 / 0.5)
    # Each of the four classes that occur has one image.
    assert metrics["balanced_accuracy"] == metrics["top1"]

    table = pd.read_csv(no_shifted_sets / "metrics/evaluate/x.csv")
    assert list(table) == ["corruption", "severity", "accuracy"]
    assert list(zip(table.corruption, table.severity, strict=True)) == [
        (name, severity) for name in ("snow", "fog") for severity in (1, 3, 5)
    ]
    assert table.accuracy.tolist() == [0.125, 0.25, 0.25, 0.25, 0.25, 0.625]


def test_fewer_than_five_classes_are_all_among_the_top_five(no_shifted_sets: Path) -> None:
    labels = np.array([2, 1, 0])
    save_predictions(one_hot(np.array([[0, 0, 0]]), 3), one_hot(np.zeros((1, 1, 1, 3), int), 3))
    score("x", labels, ["fog"], [1])
    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert metrics["top5"] == {"mean": 1.0, "seed1": 1.0}
    assert metrics["top1"]["mean"] == pytest.approx(1 / 3)


def test_without_corrupted_images_there_are_no_figures_of_them(no_shifted_sets: Path) -> None:
    save_predictions(one_hot(np.array([[0, 1, 1, 1]]), 3), np.empty((1, 0, 2, 4, 3), np.float16))
    score("x", np.array([0, 1, 2, 2]), [], [1, 3], imagenet=True)
    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert {key: values["seed1"] for key, values in metrics.items()} == {
        "top1": 0.5, "top5": 1.0, "balanced_accuracy": pytest.approx(2 / 3),
    }  # fmt: skip
    table = pd.read_csv(no_shifted_sets / "metrics/evaluate/x.csv")
    assert list(table) == ["corruption", "severity", "accuracy"] and table.empty


def test_shifted_sets_are_scored_among_their_classes(no_shifted_sets: Path) -> None:
    """Each run; a set that was skipped has no figure."""
    write_json(
        SHIFTED / "sets.json",
        {
            "v2": {"images": 3, "classes": [0, 1, 2]},
            "gone": {"skipped": "nothing is there"},
            "r": {"images": 4, "classes": [1, 2]},
        },
    )
    save_split(
        SHIFTED / "v2.safetensors", Split(np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 1, 2]))
    )
    save_split(
        SHIFTED / "r.safetensors", Split(np.zeros((4, 2, 2, 3), np.uint8), np.array([1, 1, 2, 2]))
    )
    save_predictions(one_hot(np.zeros((2, 1), int), 3), np.empty((2, 0, 1, 1, 3), np.float16))
    write_array("predictions/x/shifted/v2.npy", one_hot(np.array([[0, 1, 1], [0, 1, 2]]), 3))
    # Where class 0 is the answer, 1 comes second: right for two of four.
    write_array("predictions/x/shifted/r.npy", one_hot(np.array([[0, 0, 0, 0], [0, 0, 0, 2]]), 3))
    score("x", np.array([0]), [], [1])
    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert list(metrics) == ["top1", "top5", "balanced_accuracy", "shifted_v2", "shifted_r"]
    assert (
        metrics["shifted_v2"]["seed1"] == pytest.approx(2 / 3)
        and metrics["shifted_v2"]["seed2"] == 1
    )
    assert (metrics["shifted_r"]["seed1"], metrics["shifted_r"]["seed2"]) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("names", "severities", "imagenet", "has_mce"),
    [
        (list(ALEXNET), [1, 2, 3, 4, 5], True, True),
        (list(ALEXNET)[::-1], [5, 3, 1, 2, 4], True, True),
        (list(ALEXNET), [1, 2, 3, 4, 5], False, False),
        (list(ALEXNET), [1, 3, 5], True, False),
        (list(ALEXNET)[1:], [1, 2, 3, 4, 5], True, False),
    ],
    ids=["all", "in another order", "of other images", "some severities", "some corruptions"],
)
def test_mean_corruption_error_of_the_whole_benchmark_alone(
    no_shifted_sets: Path, names: list[str], severities: list[int], imagenet: bool, has_mce: bool
) -> None:
    labels = np.zeros(4, int)
    answers = np.zeros((2, len(names), len(severities), 4), int)
    answers[0, names.index("fog"), :, :2] = 1  # seed 1 errs on half of the foggy images
    answers[1, :, 0] = 1  # seed 2 on all of the first severity
    save_predictions(one_hot(np.zeros((2, 4), int), 3), one_hot(answers, 3).astype(np.float16))
    score("x", labels, names, severities, imagenet)
    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert ("mce" in metrics) == ("relative_mce" in metrics) == has_mce
    if has_mce:
        added = sum(1 / (error - ALEXNET_CLEAN) for error in ALEXNET.values()) / len(severities)
        assert metrics["relative_mce"]["seed2"] == pytest.approx(added / 15)
        assert metrics["mce"]["seed1"] == pytest.approx(0.5 / ALEXNET["fog"] / 15)
        expected = np.mean([1 / len(severities) / error for error in ALEXNET.values()])
        assert metrics["mce"]["seed2"] == pytest.approx(expected)


def test_a_model_that_is_never_right_retains_nothing(no_shifted_sets: Path) -> None:
    save_predictions(one_hot(np.array([[1, 1]]), 3), one_hot(np.zeros((1, 1, 1, 2), int), 3))
    score("x", np.array([0, 0]), ["fog"], [1])
    metrics = json.loads((no_shifted_sets / "metrics/evaluate/x.json").read_text())
    assert metrics["corrupted_top1"]["mean"] == 1 and metrics["retained"]["mean"] == 0


def test_missing_predictions_are_named(here: Path) -> None:
    with pytest.raises(InputError, match="predictions/x/seeds.json could not be read: No such"):
        score("x", np.array([0]), ["fog"], [1])
    write_json("predictions/x/seeds.json", ["seed0"])
    with pytest.raises(InputError, match="predictions/x/test.npy could not be read: No such file"):
        score("x", np.array([0]), ["fog"], [1])
    assert not (here / "metrics").exists()


def test_logits_of_other_runs_than_the_named_ones_are_refused(no_shifted_sets: Path) -> None:
    save_predictions(np.zeros((3, 1, 4), np.float32), np.zeros((3, 0, 1, 1, 4), np.float16))
    write_json("predictions/x/seeds.json", ["seed0", "seed1"])
    with pytest.raises(InputError, match=r"test.npy holds float32 \(3, 1, 4\): must be .* \(2, 1"):
        score("x", np.array([0]), [], [1])
    for damaged in ([], ["run0"], [0], {"seed0": 1}, ["seed0", "seed0"]):
        write_json("predictions/x/seeds.json", damaged)
        with pytest.raises(InputError, match="seeds.json"):
            read_seeds("x")
