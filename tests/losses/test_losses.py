"""The losses against published values and gradients, plain references and their properties."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from richkd.losses import ContrastiveMemory, at, dkd, kd, nst, pkt, rkd, sp, standardize

GOLDEN = Path(__file__).parent / "golden" / "losses.npz"
quick = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}


def assert_golden(actual, expected):
    """Within 1e-9 of the largest entry."""
    error = (actual.detach() - expected).abs().max() / expected.abs().max()
    assert error < 1e-9


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def unit(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed))


# --- published values ---------------------------------------------------------------------------

CASES = {
    "kd_T4": ("logits", partial(kd, temperature=4)),
    "kd_T3": ("logits", partial(kd, temperature=3)),
    "kd_standardized_T2": ("logits", lambda s, t: kd(standardize(s), standardize(t), 2)),
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
    assert value.shape == ()
    assert_golden(value, golden[f"{name}/value"])
    assert_golden(student.grad, golden[f"{name}/grad"])


def test_contrastive_steps_are_the_published_ones(golden):
    memory = ContrastiveMemory(200, 16, 64, temperature=0.07, momentum=0.5).double()
    memory.student_bank.copy_(golden["crd/bank_student"])
    memory.teacher_bank.copy_(golden["crd/bank_teacher"])
    for step in ("crd/step0", "crd/step1"):
        student = golden[f"{step}/embed_student"].clone().requires_grad_()
        teacher = golden[f"{step}/embed_teacher"].clone().requires_grad_()
        index = golden[f"{step}/index"]
        loss = memory(student, teacher, index[:, 0], index[:, 1:])
        loss.backward()
        assert_golden(loss, golden[f"{step}/loss"])
        assert_golden(student.grad, golden[f"{step}/grad_embed_student"])
        assert_golden(teacher.grad, golden[f"{step}/grad_embed_teacher"])
        assert_golden(memory.student_bank, golden[f"{step}/bank_student_after"])
        assert_golden(memory.teacher_bank, golden[f"{step}/bank_teacher_after"])
        assert_golden(memory.student_normaliser, golden["crd/Z_student"])
        assert_golden(memory.teacher_normaliser, golden["crd/Z_teacher"])


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
    assert loss(same, same).abs() < 1e-12


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


# --- contrastive memory -------------------------------------------------------------------------


def plain_contrast(embedding, bank, index, temperature, normaliser):
    """One side's term, from vectors gathered as the paper writes it."""
    scores = torch.einsum("bkd,bd->bk", bank[index], embedding) / temperature
    scores = scores.exp()
    if normaliser is None:
        normaliser = scores.mean().item() * len(bank)
    probability = scores / normaliser
    noise = (index.shape[1] - 1) / len(bank)
    positive = -(probability[:, 0] / (probability[:, 0] + noise + 1e-7)).log().sum()
    negative = -(noise / (probability[:, 1:] + noise + 1e-7)).log().sum()
    return (positive + negative) / len(index), normaliser


@quick
@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(0, 20), st.integers(0, 999)
)
def test_contrastive_memory_equals_a_plain_reference(batch, dim, negatives, spare, seed):
    samples, temperature, momentum = batch + 1 + spare, 0.2, 0.3
    memory = ContrastiveMemory(samples, dim, negatives, temperature, momentum).double()
    banks = [memory.student_bank.clone(), memory.teacher_bank.clone()]
    normalisers = [None, None]
    for step in range(2):
        embeddings = [
            unit(batch, dim, seed=4 * seed + 2 * step + side).requires_grad_() for side in (0, 1)
        ]
        positive = torch.randperm(samples, generator=generator(seed + step))[:batch]
        negative = memory.draw(positive, generator(seed))
        index = torch.cat([positive[:, None], negative], 1)
        expected = 0
        for side in (0, 1):
            term, normalisers[side] = plain_contrast(
                embeddings[side], banks[1 - side], index, temperature, normalisers[side]
            )
            expected = expected + term
        for side in (0, 1):
            for row, sample in enumerate(positive):
                moved = momentum * banks[side][sample] + (1 - momentum) * embeddings[side][row]
                banks[side] = banks[side].clone()
                banks[side][sample] = (moved / moved.norm()).detach()
        loss = memory(*embeddings, positive, negative)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, embeddings), torch.autograd.grad(expected, embeddings)
        )
        torch.testing.assert_close(memory.student_bank, banks[0])
        torch.testing.assert_close(memory.teacher_bank, banks[1])
    torch.testing.assert_close(memory.student_normaliser.item(), normalisers[0])
    torch.testing.assert_close(memory.teacher_normaliser.item(), normalisers[1])


def test_contrastive_memory_starts_as_documented():
    torch.manual_seed(0)
    memory = ContrastiveMemory(500, 48, 8, temperature=0.07, momentum=0.5)
    for bank in (memory.student_bank, memory.teacher_bank):
        assert bank.shape == (500, 48) and bank.dtype == torch.float32
        assert bank.abs().max() <= 0.25
        assert bank.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(memory.student_bank, memory.teacher_bank)
    assert memory.student_normaliser == memory.teacher_normaliser == -1
    assert set(memory.state_dict()) == {
        f"{side}_{what}" for side in ("student", "teacher") for what in ("bank", "normaliser")
    }
    assert not list(memory.parameters())


def test_contrastive_memory_draws_its_own_negatives_and_goes_on_from_a_checkpoint():
    torch.manual_seed(1)
    labels = torch.arange(30) % 3
    memory = ContrastiveMemory(30, 4, 6, 0.1, 0.5, labels)
    student, teacher, positive = unit(5, 4).float(), unit(5, 4, seed=1).float(), torch.arange(5)
    memory(student, teacher, positive)
    resumed = ContrastiveMemory(30, 4, 6, 0.1, 0.5, labels)
    resumed.load_state_dict(memory.state_dict())
    losses = []
    for one in (memory, resumed):
        torch.manual_seed(2)
        losses.append(one(student, teacher, positive))
    assert losses[0] == losses[1] and losses[0].isfinite()
    torch.manual_seed(2)
    drawn = resumed.draw(positive)
    assert drawn.shape == (5, 6) and drawn.dtype == torch.int64


def test_backward_after_a_later_step_still_sees_the_earlier_banks():
    def gradient(later_step):
        torch.manual_seed(0)
        memory = ContrastiveMemory(9, 4, 3, 0.1, 0.5)
        student, teacher = unit(2, 4).float().requires_grad_(), unit(2, 4, seed=1).float()
        loss = memory(student, teacher, torch.tensor([0, 1]))
        if later_step:
            memory(teacher, teacher, torch.tensor([2, 3]))
        loss.backward()
        return student.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=0)


def test_half_precision_embeddings_meet_float32_banks():
    memory = ContrastiveMemory(9, 4, 3, 0.1, 0.5)
    student, teacher = unit(2, 4).half().requires_grad_(), unit(2, 4, seed=1).half()
    memory(student, teacher, torch.tensor([0, 1])).backward()
    assert memory.student_bank.dtype == torch.float32
    assert student.grad.dtype == torch.float16 and student.grad.abs().sum() > 0


def test_autocast_leaves_the_loss_in_the_banks_precision():
    memory = ContrastiveMemory(9, 4, 3, 0.1, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = memory(unit(2, 4).float(), unit(2, 4, seed=1).float(), torch.tensor([0, 1]))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("shared", [False, True])
def test_forward_reads_no_value_back_from_the_device(shared):
    # Tensors of the meta device have no values: any .item() or `if` on one raises.
    memory = ContrastiveMemory(50, 4, 7, 0.1, 0.5, torch.arange(50) % 5, shared).to("meta")
    student = torch.empty(3, 4, device="meta", requires_grad=True)
    teacher = torch.empty(3, 4, device="meta")
    positive = torch.empty(3, dtype=torch.int64, device="meta")
    memory(student, teacher, positive).backward()
    assert student.grad.shape == (3, 4)


# --- negatives ----------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.integers(0, 999))
def test_draw_never_gives_a_sample_of_the_same_class(labels, seed):
    labels[0], labels[1] = 5, -5
    memory = ContrastiveMemory(len(labels), 2, 40, 0.1, 0.5, labels)
    drawn = memory.draw(torch.arange(len(labels)), generator(seed))
    labels = torch.tensor(labels)
    assert drawn.shape == (len(labels), 40)
    assert (labels[drawn] != labels[:, None]).all()


@pytest.mark.parametrize("labels", [None, [2, 0, 1, 0, 2, 2, 0, 9, 0, 1]])
def test_draw_is_uniform(labels):
    memory = ContrastiveMemory(10, 2, 20_000, 0.1, 0.5, labels)
    drawn = memory.draw(torch.arange(10), generator(0))
    classes = torch.arange(10) if labels is None else torch.tensor(labels)
    for sample in range(10):
        count = drawn[sample].bincount(minlength=10)
        allowed = classes != classes[sample]
        assert count[~allowed].sum() == 0
        assert chisquare(count[allowed]).pvalue > 1e-4


@pytest.mark.parametrize("word", [0, 2**31 - 1])
def test_draw_reaches_the_first_and_last_sample_and_not_beyond(monkeypatch, word):
    memory = ContrastiveMemory(5, 2, 1, 0.1, 0.5, [0, 0, 1, 2, 2])
    monkeypatch.setattr(torch, "randint", lambda high, shape, **_: torch.full(shape, word))
    drawn = memory.draw(torch.arange(5))[:, 0].tolist()
    assert drawn == ([2, 2, 0, 0, 0] if word == 0 else [4, 4, 4, 2, 2])


def test_draw_repeats_with_its_generator():
    memory = ContrastiveMemory(100, 2, 8, 0.1, 0.5)
    positive = torch.arange(4)
    first, second, other = (memory.draw(positive, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


# --- negatives shared by the batch --------------------------------------------------------------


def test_a_shared_set_is_uniform_over_all_samples_and_repeats_with_its_generator():
    memory = ContrastiveMemory(10, 2, 20_000, 0.1, 0.5, [0] * 9 + [1], shared=True)
    drawn = memory.draw(torch.arange(3), generator(0))
    assert drawn.shape == (20_000,) and drawn.dtype == torch.int64
    assert chisquare(drawn.bincount(minlength=10)).pvalue > 1e-4
    assert torch.equal(drawn, memory.draw(torch.arange(3), generator(0)))


@pytest.mark.parametrize("labels", [None, [0] * 20 + [1] * 15 + [2] * 5])
def test_shared_and_own_negatives_estimate_the_same_loss_and_gradient(labels):
    """Means over many draws against the exact expectation, which sums over all samples."""
    samples, batch, negatives, temperature = 40, 6, 30, 0.2
    embeddings = [unit(batch, 5, seed=side).requires_grad_() for side in (0, 1)]
    positive = torch.tensor([0, 7, 19, 22, 34, 39])
    classes = torch.arange(samples) if labels is None else torch.tensor(labels)
    estimates = {}
    for shared in (False, True):
        torch.manual_seed(0)
        memory = ContrastiveMemory(samples, 5, negatives, temperature, 0.5, labels, shared).double()
        memory.student_normaliser.fill_(60.0)
        memory.teacher_normaliser.fill_(50.0)
        draw, values = generator(1), []
        for _ in range(600):
            loss = memory.contrast(*embeddings, positive, memory.draw(positive, draw))
            gradients = torch.autograd.grad(loss, embeddings)
            values.append(torch.cat([loss.detach().view(1), *(x.flatten() for x in gradients)]))
        estimates[shared] = torch.stack(values)

    expected = 0.0
    sides = ((memory.teacher_bank, 60.0), (memory.student_bank, 50.0))
    for embedding, (bank, normaliser) in zip(embeddings, sides):
        probability = (embedding @ bank.T / temperature).exp() / normaliser
        noise = negatives / samples
        own = probability.gather(1, positive[:, None])
        others = (classes[None] != classes[positive][:, None]).double()
        per_sample = (noise / (probability + noise + 1e-7)).log() * others
        mean = per_sample.sum(1) / others.sum(1)
        expected = (
            expected - ((own / (own + noise + 1e-7)).log().sum() + negatives * mean.sum()) / batch
        )
    exact = torch.autograd.grad(expected, embeddings)
    exact = torch.cat([expected.detach().view(1), *(x.flatten() for x in exact)])
    for values in estimates.values():
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - exact).abs() < 4.5 * error).all()
        assert (error[0] / exact[0]).item() < 0.01  # tight enough to tell


@quick
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))
def test_a_shared_set_equals_a_plain_reference(batch, negatives, seed):
    """By hand: negatives of a sample's class left out, the others weighed up to their number."""
    draw = generator(seed)
    labels = torch.randint(3, (12,), generator=draw)
    labels[:3] = torch.arange(3)
    memory = ContrastiveMemory(12, 4, negatives, 0.2, 0.5, labels, shared=True).double()
    embeddings = [unit(batch, 4, seed=2 * seed + side).requires_grad_() for side in (0, 1)]
    positive = torch.randperm(12, generator=draw)[:batch]
    chosen = memory.draw(positive, draw)
    expected = 0
    for embedding, bank in zip(embeddings, (memory.teacher_bank, memory.student_bank)):
        scores = (embedding @ bank.T / 0.2).exp()
        kept = [[j for j in chosen.tolist() if labels[j] != labels[i]] for i in positive]
        weight = [negatives / max(len(row), 1) for row in kept]
        total = sum(
            scores[i, positive[i]] + weight[i] * scores[i, kept[i]].sum() for i in range(batch)
        )
        normaliser = (total / (batch * (negatives + 1)) * 12).detach()
        probability, noise = scores / normaliser, negatives / 12
        for i in range(batch):
            own = probability[i, positive[i]]
            others = probability[i, kept[i]]
            expected = expected - (own / (own + noise + 1e-7)).log() / batch
            expected = expected - weight[i] * (noise / (others + noise + 1e-7)).log().sum() / batch
    loss = memory.contrast(*embeddings, positive, chosen)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, embeddings), torch.autograd.grad(expected, embeddings)
    )


def test_large_banks_share_by_default():
    for samples, shared in ((200_000, False), (200_001, True)):
        assert ContrastiveMemory(samples, 1, 2, 0.1, 0.5).shared is shared
    assert not ContrastiveMemory(200_001, 1, 2, 0.1, 0.5, shared=False).shared


def test_a_set_all_of_a_samples_class_leaves_its_positive_alone():
    memory = ContrastiveMemory(6, 4, 3, 0.1, 0.5, [0, 0, 0, 0, 0, 1], shared=True)
    student, teacher = unit(1, 4).float().requires_grad_(), unit(1, 4, seed=1).float()
    loss = memory(student, teacher, torch.tensor([0]), torch.tensor([1, 2, 2]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and student.grad.abs().sum() > 0


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_temperature_must_be_positive(value):
    logits, target = normal(2, 3), torch.tensor([0, 1])
    for call in (
        lambda: kd(logits, logits, value),
        lambda: dkd(logits, logits, target, 1, 8, value),
        lambda: ContrastiveMemory(10, 4, 2, value, 0.5),
    ):
        with pytest.raises(ValueError, match=f"temperature is {value}, must be positive"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: kd(normal(4, 3), normal(1, 3), 4),
        lambda: dkd(normal(4, 3), normal(4, 1), torch.zeros(4, dtype=torch.int64), 1, 8, 4),
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


def test_attention_power_must_be_positive():
    with pytest.raises(ValueError, match="p is 0, must be positive"):
        at(normal(1, 2, 3, 3), normal(1, 2, 3, 3), 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_samples": 1}, "num_samples is 1, must be at least 2"),
        ({"dim": 0}, "dim is 0, must be at least 1"),
        ({"negatives": 0}, "negatives is 0, must be at least 1"),
        ({"momentum": 1.0}, r"momentum is 1.0, must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum is -0.1, must be in \[0, 1\)"),
        ({"labels": [0, 1]}, r"labels has shape \(2,\), must be \(6,\)"),
        ({"labels": [[0], [1], [2], [0], [1], [2]]}, r"labels has shape \(6, 1\)"),
        ({"labels": [7] * 6}, "labels is 7 for every sample, must hold at least two classes"),
    ],
)
def test_contrastive_memory_refuses(arguments, message):
    good = {"num_samples": 6, "dim": 4, "negatives": 2, "temperature": 0.1, "momentum": 0.5}
    with pytest.raises(ValueError, match=message):
        ContrastiveMemory(**good | arguments)
