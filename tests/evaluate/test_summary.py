"""What is said of the numbers, whichever way they fall."""

from richkd.evaluate.summary import findings, signed


def numbers(top1, corrupted, sd=None):
    spread = {} if sd is None else {"top1_sd": sd, "corrupted_top1_sd": sd}
    return {"top1": top1, "validation_accuracy": 0.88, "corrupted_top1": corrupted, **spread}


TEACHERS = {"teacher": numbers(0.9, 0.5), "clip": numbers(0.8, 0.4), "fused": numbers(0.95, 0.3)}


def test_findings_say_what_is_within_the_spread():
    students = {
        "ce": numbers(0.7, 0.2, 0.01),
        "kd": numbers(0.8, 0.4, 0.02),
        "L": numbers(0.9, 0.39, 0.03),
    }
    against, fused, best, gap = findings(TEACHERS | students, ["ce", "kd"], ["L"], "digits")
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


def test_findings_do_not_flatter():
    students = {"ce": numbers(0.7, 0.2), "L": numbers(0.6, 0.2)}
    against, fused, best, _ = findings(
        TEACHERS | students | {"fused": numbers(0.85, 0.45)}, ["ce"], ["L"], "digits"
    )
    assert against.startswith("L against ce: −10.0 points on clean images, +0.0 points")
    assert "one seed, so no spread" in against
    assert "not above the better of its parts on clean images" in fused
    assert best == "No student is above ce, trained on labels alone, on clean images."


def test_findings_of_other_images_than_digits():
    students = {"ce": numbers(0.7, 0.2), "L": numbers(0.9, 0.2)}
    *_, caution = findings(TEACHERS | students, ["ce"], ["L"], "cifar100")
    assert caution.startswith(
        "The spread over seeds says nothing about the choice of images: L is +2.0 points on test "
        "against validation images. Differences"
    )
    for values in students.values():
        del values["validation_accuracy"]
    *_, caution = findings(TEACHERS | students, ["ce"], ["L"], "cifar100")
    assert caution.startswith(
        "The spread over seeds says nothing about the choice of images. Differences"
    )


def test_rounded_zero_has_no_minus():
    assert signed(-0.04) == "+0.0"
    assert signed(-0.06) == "−0.1"
    assert signed(-0.4, 0) == "+0"
