"""What is said of the numbers, whichever way they fall, and of which students."""

from typing import Any

import pytest

from richkd.evaluate.summary import Shown, Summary, choose_shown, findings, signed
from richkd.params.students import Kd, Variant


def numbers(top1: float, corrupted: float, sd: float | None = None) -> dict[str, float]:
    spread = {} if sd is None else {"top1_sd": sd, "corrupted_top1_sd": sd}
    return {"top1": top1, "validation_accuracy": 0.88, "corrupted_top1": corrupted, **spread}


TEACHERS = {"teacher": numbers(0.9, 0.5), "clip": numbers(0.8, 0.4), "fused": numbers(0.95, 0.3)}


# --- sentences ----------------------------------------------------------------------------------


def test_findings_say_what_is_within_the_spread() -> None:
    students = {
        "ce": numbers(0.7, 0.2, 0.01),
        "kd": numbers(0.8, 0.4, 0.02),
        "L": numbers(0.9, 0.39, 0.03),
    }
    against, fused, best, gap = findings(TEACHERS | students, "kd", "digits")
    assert against == (
        "L against kd: +10.0 points on clean images (more than one sd: the larger of the two is "
        "3.0), −1.0 points on corrupted images (within one sd: the larger of the two is 3.0)."
    )
    assert "above both its parts on clean images (95.0 %" in fused
    assert "below both its parts on corrupted images (30.0 %" in fused
    assert best.startswith("The best student on clean images is L; ce")
    assert "20.0 points below" in best
    assert gap.startswith(
        "The spread over seeds says nothing about the choice of images, which share scans within a "
        "split: L is +2.0 points on test against validation images. Differences"
    )


def test_findings_do_not_flatter() -> None:
    students = {"ce": numbers(0.7, 0.2), "L": numbers(0.6, 0.2)}
    summary = TEACHERS | students | {"fused": numbers(0.85, 0.45)}
    against, fused, best, _ = findings(summary, "ce", "digits")
    assert against.startswith("L against ce: −10.0 points on clean images, +0.0 points")
    assert "one seed, so no spread" in against
    assert "not above the better of its parts on clean images" in fused
    assert best == "No student is above ce, trained on labels alone, on clean images."


def test_findings_of_other_images_than_digits() -> None:
    students = {"ce": numbers(0.7, 0.2), "L": numbers(0.9, 0.2)}
    *_, caution = findings(TEACHERS | students, "ce", "cifar100")
    assert caution.startswith(
        "The spread over seeds says nothing about the choice of images: L is +2.0 points on test "
        "against validation images. Differences"
    )
    for values in students.values():
        del values["validation_accuracy"]
    *_, caution = findings(TEACHERS | students, "ce", "cifar100")
    assert caution.startswith(
        "The spread over seeds says nothing about the choice of images. Differences"
    )


def test_every_variant_but_the_reference_is_compared_with_it() -> None:
    names = ["ce", "a", "b", "c"]
    summary = TEACHERS | {name: numbers(0.7, 0.2) for name in names}
    sentences = findings(summary, "b", "digits")
    assert [sentence[:12] for sentence in sentences[:-3]] == ["a against b:", "c against b:"]
    sentences = findings(summary, "ce", "digits")
    assert [sentence.split(":")[0] for sentence in sentences[:-3]] == [
        "a against ce", "b against ce", "c against ce",
    ]  # fmt: skip


def test_of_the_student_alone_no_comparison_is_said() -> None:
    fused, caution = findings(TEACHERS | {"ce": numbers(0.7, 0.2)}, None, "digits")
    assert fused.startswith("The fused teacher is above both its parts on clean images")
    assert ": ce is −18.0 points on test against validation images." in caution


def test_rounded_zero_has_no_minus() -> None:
    assert signed(-0.04) == "+0.0"
    assert signed(-0.06) == "−0.1"
    assert signed(-0.4, 0) == "+0"


# --- which student is shown ---------------------------------------------------------------------

# The variants' teachers by name and their validation accuracies; the student shown, the reference,
# and the group in which the student shown is the best.
UNDER_FUSED = "students under the fused teacher."
CHOICES = [
    ({"kd": "teacher", "L": "fused", "F": "fused"}, [9, 1, 2], "F", "kd", UNDER_FUSED),
    ({"kd": "teacher", "L": "fused", "F": "fused"}, [9, 2, 2], "L", "kd", UNDER_FUSED),
    ({"c": "clip", "L": "fused", "k": "teacher", "d": "clip"}, [9, 1, 9, 9], "L", "k", UNDER_FUSED),
    ({"L": "fused"}, [1], "L", "ce", UNDER_FUSED),
    ({"k": "teacher", "d": "teacher", "c": "clip"}, [9, 2, 1], "d", "k", "variants other than k."),
    ({"c": "clip", "b": "clip"}, [1, 2], "b", "ce", "variants."),
    ({"c": "clip"}, [1], "c", "ce", "variants."),
]  # fmt: skip


def experiment(
    teachers: dict[str, str], accuracies: list[float] | None
) -> tuple[Summary, dict[str, Variant]]:
    """A summary, without validation accuracies where there are none, and the variants."""
    summary = TEACHERS | {name: numbers(0.7, 0.2) for name in ("ce", *teachers)}
    for place, name in enumerate(teachers):
        if accuracies:
            summary[name]["validation_accuracy"] = accuracies[place]
    if not accuracies:
        for name in ("ce", *teachers):
            del summary[name]["validation_accuracy"]
    kd: dict[str, Any] = {"kd": Kd(weight=1.0, temperature=1.0)}
    variants = {name: Variant(**kd | {"teacher": teacher}) for name, teacher in teachers.items()}
    return summary, variants


@pytest.mark.parametrize("teachers, accuracies, student, reference, group", CHOICES)
def test_the_best_on_validation_images_is_shown(
    teachers: dict[str, str], accuracies: list[float], student: str, reference: str, group: str
) -> None:
    shown = choose_shown(*experiment(teachers, accuracies))
    assert shown[:2] == (student, reference)
    assert shown.reason.startswith(
        f"{student} is shown since it has the highest validation accuracy"
    )
    assert f"of the {group}" in shown.reason


def test_without_validation_images_the_last_is_shown() -> None:
    teachers = {"kd": "teacher", "F": "fused", "L": "fused", "c": "clip"}
    assert choose_shown(*experiment(teachers, None)) == Shown(
        "L",
        "kd",
        "L is shown since it is the last of the students under the fused teacher in "
        "distill.variants; it was not chosen on test images.",
    )


@pytest.mark.parametrize("accuracies", [[1.0], None])
def test_the_only_variant_is_shown_against_the_student_alone(
    accuracies: list[float] | None,
) -> None:
    shown = choose_shown(*experiment({"kd": "teacher"}, accuracies))
    assert shown == Shown("kd", "ce", "kd is shown since it is the only variant.")


def test_without_variants_the_student_alone_is_shown() -> None:
    assert choose_shown(*experiment({}, None)) == Shown("ce", None, "")
