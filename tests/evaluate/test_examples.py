"""Which test images the report shows."""

import numpy as np

from richkd.evaluate.best import Best
from richkd.evaluate.examples import choose_examples
from richkd.evaluate.summary import TEACHERS


def test_examples_are_the_first_of_their_kind() -> None:
    answers = {
        "teacher": [1, 1, 0, 0, 1],
        "clip": [1, 1, 0, 1, 0],
        "fused": [1, 1, 0, 1, 0],
        "kd": [1, 1, 0, 0, 1],
        "L": [1, 1, 0, 1, 1],
    }
    correct = {model: np.array(values, bool) for model, values in answers.items()}
    assert choose_examples(correct, Best("L", "kd", "")) == [
        (0, "Every model is right", 2),
        (2, "Every model is wrong", 1),
        (3, "The teacher is wrong, the fused teacher right", 1),
        (4, "One part is right, the fused teacher wrong", 1),
    ]  # image 3 is also the only one that kd has wrong and L right


def test_examples_compare_two_students_only_with_a_reference() -> None:
    """Both students are right and wrong on one image each; the teachers are always right."""
    right = np.ones(2, bool)
    correct = dict.fromkeys(TEACHERS, right)
    correct |= {"a": np.array([True, False]), "b": np.array([False, True])}
    kinds = [kind for _, kind, _ in choose_examples(correct, Best("a", "b", ""))]
    assert kinds == ["The fused teacher is right, a wrong", "b is wrong, a right"]
    kinds = [kind for _, kind, _ in choose_examples(correct, Best("a", None, ""))]
    assert kinds == ["The fused teacher is right, a wrong"]
