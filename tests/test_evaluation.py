"""Figures from saved logits, against scikit-learn and cases worked by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from richkd.evaluation import hit_rate, score
from richkd.files import write_array
from richkd.metrics import summarize

quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@given(st.integers(1, 40), st.integers(3, 9), st.data())
def test_hit_rate_is_sklearns_top_k_accuracy(samples, classes, data):
    top = data.draw(st.integers(1, classes - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits, labels = rng.normal(size=(samples, classes)), rng.integers(classes, size=samples)
    expected = top_k_accuracy_score(labels, logits, k=top, labels=np.arange(classes))
    assert hit_rate(logits, labels, top) == pytest.approx(expected)
    assert hit_rate(logits, labels, classes) == 1


def one_hot(answers, classes):
    """Logits whose largest is the answer, in front of the classes in their order."""
    return np.eye(classes)[answers] * 10 - np.arange(classes)


def test_score_writes_accuracies_by_run_corruption_and_severity(here):
    labels = np.array([0, 1, 2, 6])
    # Run 0 is right on three of the clean images, run 1 on two.
    clean = one_hot(np.array([[0, 1, 2, 5], [0, 1, 0, 0]]), 7)
    answers = np.zeros((2, 2, 3, 4), int)  # right on image 0 alone …
    answers[0, 1, 2] = labels  # … but for run 0 under the last corruption and severity
    answers[1, 0, 0] = 3
    write_array("predictions/x/test.npy", clean.astype(np.float32))
    write_array("predictions/x/corrupted.npy", one_hot(answers, 7).astype(np.float16))
    score("x", labels, ["snow", "fog"], [1, 3, 5])

    metrics = json.loads((here / "metrics/evaluate/x.json").read_text())
    assert list(metrics) == ["top1", "top5", "corrupted_top1"]
    assert metrics["top1"] == {
        "mean": 0.625, "sd": pytest.approx(math.sqrt(2) / 8), "run0": 0.75, "run1": 0.5,
    }  # fmt: skip
    # Label 6 is last of all: among five only as the answer.
    assert (metrics["top5"]["run0"], metrics["top5"]["run1"]) == (0.75, 0.75)
    assert metrics["corrupted_top1"]["run0"] == pytest.approx((5 * 0.25 + 1) / 6)
    assert metrics["corrupted_top1"]["run1"] == pytest.approx(5 * 0.25 / 6)

    table = pd.read_csv(here / "metrics/evaluate/x.csv")
    assert list(table) == ["corruption", "severity", "accuracy"]
    assert list(zip(table.corruption, table.severity)) == [
        (name, severity) for name in ("snow", "fog") for severity in (1, 3, 5)
    ]
    assert table.accuracy.tolist() == [0.125, 0.25, 0.25, 0.25, 0.25, 0.625]


def test_fewer_than_five_classes_are_all_among_the_top_five(here):
    labels = np.array([2, 1, 0])
    write_array("predictions/x/test.npy", one_hot(np.array([[0, 0, 0]]), 3))
    write_array("predictions/x/corrupted.npy", one_hot(np.zeros((1, 1, 1, 3), int), 3))
    score("x", labels, ["fog"], [1])
    metrics = json.loads((here / "metrics/evaluate/x.json").read_text())
    assert metrics["top5"] == {"mean": 1.0, "run0": 1.0}
    assert metrics["top1"]["mean"] == pytest.approx(1 / 3)


def test_missing_predictions_are_named(here):
    with pytest.raises(FileNotFoundError, match="predictions/x/test.npy"):
        score("x", np.array([0]), ["fog"], [1])
    assert not (here / "metrics").exists()


def test_summaries_by_hand():
    values = {"seed0": 1.0, "seed1": 2.0, "seed4": 6.0}
    results = {seed: {"a": value, "b": 5.0} for seed, value in values.items()}
    assert summarize(results) == {
        "a": {"mean": 3.0, "sd": pytest.approx(math.sqrt(7)), **values},
        "b": {"mean": 5.0, "sd": 0.0, "seed0": 5.0, "seed1": 5.0, "seed4": 5.0},
    }


def test_one_seed_has_no_deviation():
    assert summarize({"seed0": {"a": 0.5}}) == {"a": {"mean": 0.5, "seed0": 0.5}}
