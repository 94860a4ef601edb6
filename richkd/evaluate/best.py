"""Choose the best student without the test images, and the student that it is compared with."""

from collections.abc import Mapping
from typing import NamedTuple

from richkd.evaluate.summary import ALONE, Summary
from richkd.params.students import Variant


class Best(NamedTuple):
    """The best student, and the student that its details are compared with, if there is one."""

    student: str
    reference: str | None
    reason: str  # how it was chosen: what follows "X is the best student: "


def choose_baseline(variants: Mapping[str, Variant]) -> str:
    """The student that all others are compared with.

    That is the first variant under the teacher `teacher`. Without such a variant, or if there is no
    other variant, it is `ce`.
    """
    under_teacher = [name for name, variant in variants.items() if variant.teacher == "teacher"]
    return under_teacher[0] if under_teacher and len(variants) > 1 else ALONE


def choose_best(summary: Summary, variants: Mapping[str, Variant]) -> Best:
    """The student of the highest validation accuracy, the first of equals.

    Without validation images it is the last variant of params.yaml. The reference is the baseline,
    or `ce` if the best student is the baseline. If the best student is `ce` and the baseline too,
    there is no reference.
    """
    students = [ALONE, *variants]
    if "validation_accuracy" in summary[ALONE]:
        student = max(students, key=lambda name: summary[name]["validation_accuracy"].mean)
        reason = "of all students it has the highest accuracy on the validation images"
    else:
        student = students[-1]
        reason = (
            "there are no validation images to choose on, so the last student in distill.variants "
            "is taken; the test images choose nothing"
        )
    others = [name for name in (choose_baseline(variants), ALONE) if name != student]
    return Best(student, others[0] if others else None, reason)
