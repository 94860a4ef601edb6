"""The loss functions against published values and gradients, and their properties."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd.losses import at, dist, dkd, kd, mlkd, nst, pkt, rkd, sp, standardize

quick = settings(max_examples=30, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# --- published values ---------------------------------------------------------------------------

CASES = {
    "kd_T4": ("logits", partial(kd, temperature=4)),
    "kd_T3": ("logits", partial(kd, temperature=3)),
    "kd_standardized_T2": ("logits", partial(kd, temperature=2, standardize=True)),
    "mlkd_T2-6": ("logits", partial(mlkd, temperatures=(2, 3, 4, 5, 6))),
    "dist_b2_g2_T4": ("logits", partial(dist, beta=2, gamma=2, temperature=4)),
    "dist_b1_g1_T1": ("logits", partial(dist, beta=1, gamma=1, temperature=1)),
    "rkd_d25_a50": ("features", partial(rkd, distance_weight=25, angle_weight=50)),
    "sp": ("features", sp),
    "pkt": ("features", pkt),
    "at_p2": ("map", partial(at, p=2)),
    "nst": ("map", nst),
}


@pytest.mark.parametrize("name", [*CASES, "dkd_a1_b8_T4"])
def test_value_and_gradient_are_the_published_ones(golden, name):
    target = golden["input/target"]
    a1_b8_t4 = partial(dkd, target=target, alpha=1, beta=8, temperature=4)
    kind, loss = CASES.get(name, ("logits", a1_b8_t4))
    student = golden[f"input/student_{kind}"].clone().requires_grad_()
    value = loss(student, golden[f"input/teacher_{kind}"])
    value.backward()
    golden.check(f"{name}/value", value)
    golden.check(f"{name}/grad", student.grad)


# --- properties of the functions ----------------------------------------------------------------


@quick
@given(st.integers(0, 999), st.floats(0.5, 20), st.floats(0.1, 30))
def test_kd_is_never_negative_and_zero_at_equality(seed, temperature, scale):
    student, teacher = scale * normal(4, 7, seed=seed), scale * normal(4, 7, seed=seed + 1)
    assert kd(student, teacher, temperature) > 0
    assert kd(student, student + 3, temperature).abs() < 1e-11  # softmax ignores a shift


def test_kd_by_hand():
    student, teacher = torch.zeros(1, 2).double(), torch.tensor([[2 * np.log(3), 0.0]])
    # At T 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2.
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert kd(student, teacher, 2).item() == pytest.approx(expected, rel=1e-12)


def test_standardize_gives_mean_0_and_deviation_1():
    rows = standardize(5 + 3 * normal(6, 10))
    torch.testing.assert_close(rows.mean(1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(6).double(), atol=1e-6, rtol=0)
    assert standardize(torch.ones(2, 4)).isfinite().all()


def test_kd_standardizes_both_sides_where_asked():
    student, teacher = 5 * normal(4, 7), 2 + normal(4, 7, seed=1)
    expected = kd(standardize(student), standardize(teacher), 2)
    assert torch.equal(kd(student, teacher, 2, standardize=True), expected)
    assert not torch.equal(kd(student, teacher, 2), expected)


def test_mlkd_by_hand():
    student, teacher = normal(3, 4), normal(3, 4, seed=1)
    expected = 0.0
    for t in (1.0, 2.5):
        p, q = (x.div(t).softmax(1).numpy() for x in (student, teacher))
        expected += t**2 * (q * np.log(q / p)).sum(1).mean()
        for first, second, count in ((p, q, 3), (p.T, q.T, 4)):
            relation = np.einsum("ik,jk->ij", first, first) - np.einsum("ik,jk->ij", second, second)
            expected += (relation**2).sum() / count
    assert mlkd(student, teacher, [1.0, 2.5]).item() == pytest.approx(expected, rel=1e-12)


def test_dist_is_one_minus_the_correlation_of_rows_and_of_columns():
    student, teacher = normal(5, 4), normal(5, 4, seed=1)
    p, q = (x.div(3).softmax(1).numpy() for x in (student, teacher))
    rows, columns = (
        np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(first, second, strict=True)])
        for first, second in ((p, q), (p.T, q.T))
    )
    expected = 9 * (0.5 * rows + 2 * columns)
    # The epsilon of the published formula moves the value a little.
    assert dist(student, teacher, 0.5, 2, 3).item() == pytest.approx(expected, rel=1e-4)


def test_dist_stays_finite_where_there_is_no_correlation():
    """One sample has constant columns, equal logits have constant rows."""
    for student, teacher in (
        (normal(1, 4), normal(1, 4, seed=1)),
        (torch.zeros(3, 4), normal(3, 4)),
    ):
        student.requires_grad_()
        loss = dist(student, teacher, 1, 1, 4)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all()


def test_dkd_with_the_teachers_own_weight_is_kd():
    # KD = TCKD + (1 - p_target)·NCKD with the teacher's p (DKD, equation 6).
    student, teacher, target = normal(1, 6), normal(1, 6, seed=1), torch.tensor([4])
    beta = 1 - teacher.div(3).softmax(1)[0, 4].item()
    torch.testing.assert_close(dkd(student, teacher, target, 1, beta, 3), kd(student, teacher, 3))


def test_dkd_stays_finite_where_the_target_is_certain():
    student = torch.tensor([[80.0, 0.0, 1.0]], requires_grad=True)
    loss = dkd(student, torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0]), 1, 8, 1)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_no_loss_where_student_and_teacher_agree(name):
    kind, loss = CASES[name]
    same = normal(*{"logits": (5, 6), "features": (5, 6), "map": (5, 3, 2, 4)}[kind])
    # DIST's epsilon keeps a correlation below 1.
    assert loss(same, same).abs() < (1e-3 if name.startswith("dist") else 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    kind, loss = CASES[name]
    shape = {"logits": (4, 5), "features": (4, 5), "map": (3, 4, 2, 3)}[kind]
    student, teacher = normal(*shape).requires_grad_(), normal(*shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize("loss", [partial(rkd, distance_weight=25, angle_weight=50), sp, pkt])
def test_features_that_collapsed_give_finite_gradients(loss):
    for rows in ([0, 0, 0, 0], [3, 3, 3, 3], [0, 0, 1, 2], [0]):
        student = torch.eye(4, 3)[rows].requires_grad_()
        value = loss(student, normal(len(student), 5).float())
        value.backward()
        assert value.isfinite() and student.grad.abs().max() < 1e3


def test_rkd_of_one_sample_is_zero():
    assert rkd(normal(1, 3), normal(1, 4), 25, 50) == 0


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_temperatures_must_be_positive(value):
    logits, target = normal(2, 3), torch.tensor([0, 1])
    for call in (
        lambda: kd(logits, logits, value),
        lambda: dkd(logits, logits, target, 1, 8, value),
        lambda: mlkd(logits, logits, [2, value]),
        lambda: dist(logits, logits, 1, 1, value),
    ):
        with pytest.raises(ValueError, match=f"temperature is {value}, must be positive"):
            call()


def test_mlkd_needs_a_temperature():
    with pytest.raises(ValueError, match="temperatures is empty, must hold at least one"):
        mlkd(normal(2, 3), normal(2, 3), [])


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_weights_must_not_be_negative(value):
    rows, target = normal(2, 3), torch.tensor([0, 1])
    calls = {
        "alpha": lambda: dkd(rows, rows, target, value, 8, 4),
        "beta": lambda: dkd(rows, rows, target, 1, value, 4),
        "distance_weight": lambda: rkd(rows, rows, value, 50),
        "angle_weight": lambda: rkd(rows, rows, 25, value),
        "gamma": lambda: dist(rows, rows, 1, value, 4),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=f"{name} is {value}, must be 0 or positive, and finite"
        ):
            call()
    with pytest.raises(ValueError, match=f"beta is {value}, must be 0 or positive, and finite"):
        dist(rows, rows, value, 1, 4)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_attention_power_must_be_positive(value):
    with pytest.raises(ValueError, match=f"p is {value}, must be positive"):
        at(normal(1, 2, 3, 3), normal(1, 2, 3, 3), value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kd(normal(4, 3), normal(1, 3), 4),
        lambda: dkd(normal(4, 3), normal(4, 1), torch.zeros(4, dtype=torch.int64), 1, 8, 4),
        lambda: mlkd(normal(4, 3), normal(1, 3), [2]),
        lambda: dist(normal(4, 3), normal(1, 3), 1, 1, 4),
        lambda: rkd(normal(4, 3), normal(1, 3), 25, 50),
        lambda: sp(normal(4, 3), normal(1, 3)),
        lambda: pkt(normal(4, 3), normal(1, 3)),
        lambda: at(normal(4, 3, 2, 2), normal(4, 3, 1, 1), 2),
        lambda: nst(normal(4, 3, 2, 2), normal(1, 3, 2, 2)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call):
    with pytest.raises(ValueError, match="for the teacher, must equal the student's"):
        call()
