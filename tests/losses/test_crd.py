"""Contrastive representation distillation against published steps, plain references, chance."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from richkd.losses import ContrastiveMemory

quick = settings(max_examples=30, deadline=None, derandomize=True)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(shape, dtype=torch.float64, generator=generator(seed)))


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
        golden.check(f"{step}/loss", loss)
        golden.check(f"{step}/grad_embed_student", student.grad)
        golden.check(f"{step}/grad_embed_teacher", teacher.grad)
        golden.check(f"{step}/bank_student_after", memory.student_bank)
        golden.check(f"{step}/bank_teacher_after", memory.teacher_bank)
        golden.check("crd/Z_student", memory.student_normaliser)
        golden.check("crd/Z_teacher", memory.teacher_normaliser)


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
    assert set(memory.state_dict()) == {"banks", "normalisers"}
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


@pytest.mark.parametrize("kind", ["per_sample", "shared", "all"])
def test_forward_reads_no_value_back_from_the_device(kind):
    # Tensors of the meta device have no values: any .item() or `if` on one raises.
    memory = ContrastiveMemory(50, 4, 7, 0.1, 0.5, torch.arange(50) % 5, kind).to("meta")
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


def test_any_two_draws_are_independent():
    """Joint counts over many draws: of two places in a row, and of two samples at any places."""
    memory = ContrastiveMemory(6, 2, 2, 0.1, 0.5, [0, 0, 1, 2, 2, 2])
    draw = generator(0)
    drawn = torch.stack([memory.draw(torch.tensor([0, 2]), draw) for _ in range(10_000)])
    for one, other in itertools.combinations(drawn.flatten(1).T, 2):
        pairs, counts = torch.stack([one, other]).unique(dim=1, return_counts=True)
        assert counts.shape == (len(one.unique()) * len(other.unique()),)  # each pair is met
        assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("of_place", "of_sample", "drawn"),
    [
        (0, 0, [2, 2, 3, 0, 0]),
        (2**31 - 1, 0, [4, 4, 1, 2, 2]),
        (2**63 - 1, 2**63 - 1, [4, 4, 1, 2, 2]),  # the largest that `random_` gives
    ],
)
def test_draw_reaches_the_first_and_last_sample_and_not_beyond(
    monkeypatch, of_place, of_sample, drawn
):
    memory = ContrastiveMemory(5, 2, 1, 0.1, 0.5, [0, 0, 1, 2, 2])
    words = torch.tensor([of_place] + [of_sample] * 5)
    monkeypatch.setattr(torch.Tensor, "random_", lambda empty, **_: empty.copy_(words))
    assert memory.draw(torch.arange(5))[:, 0].tolist() == drawn


def test_draw_repeats_with_its_generator():
    memory = ContrastiveMemory(100, 2, 8, 0.1, 0.5)
    positive = torch.arange(4)
    first, second, other = (memory.draw(positive, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


# --- negatives shared by the batch --------------------------------------------------------------


def test_a_shared_set_is_uniform_over_all_samples_and_repeats_with_its_generator():
    memory = ContrastiveMemory(10, 2, 20_000, 0.1, 0.5, [0] * 9 + [1], "shared")
    drawn = memory.draw(torch.arange(3), generator(0))
    assert drawn.shape == (20_000,) and drawn.dtype == torch.int64
    assert chisquare(drawn.bincount(minlength=10)).pvalue > 1e-4
    assert torch.equal(drawn, memory.draw(torch.arange(3), generator(0)))


@pytest.mark.parametrize("labels", [None, [0] * 20 + [1] * 15 + [2] * 5])
def test_all_negatives_give_what_shared_and_own_ones_estimate(labels):
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
    for embedding, (bank, normaliser) in zip(embeddings, sides, strict=True):
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
    torch.manual_seed(0)
    memory = ContrastiveMemory(samples, 5, negatives, temperature, 0.5, labels, "all").double()
    memory.student_normaliser.fill_(60.0)
    memory.teacher_normaliser.fill_(50.0)
    loss = memory.contrast(*embeddings, positive, memory.draw(positive))
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(torch.cat([x.flatten() for x in gradients]), exact[1:])
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
    memory = ContrastiveMemory(12, 4, negatives, 0.2, 0.5, labels, "shared").double()
    embeddings = [unit(batch, 4, seed=2 * seed + side).requires_grad_() for side in (0, 1)]
    positive = torch.randperm(12, generator=draw)[:batch]
    chosen = memory.draw(positive, draw)
    expected = 0
    for embedding, bank in zip(embeddings, (memory.teacher_bank, memory.student_bank), strict=True):
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
    for samples, kind in ((200_000, "per_sample"), (200_001, "shared")):
        assert ContrastiveMemory(samples, 1, 2, 0.1, 0.5).kind == kind
    assert ContrastiveMemory(200_001, 1, 2, 0.1, 0.5, kind="per_sample").kind == "per_sample"


def test_a_set_all_of_a_samples_class_leaves_its_positive_alone():
    memory = ContrastiveMemory(6, 4, 3, 0.1, 0.5, [0, 0, 0, 0, 0, 1], "shared")
    student, teacher = unit(1, 4).float().requires_grad_(), unit(1, 4, seed=1).float()
    loss = memory(student, teacher, torch.tensor([0]), torch.tensor([1, 2, 2]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and student.grad.abs().sum() > 0


# --- all samples of other classes ---------------------------------------------------------------


def test_all_negatives_by_hand_and_the_normaliser_of_their_first_batch():
    """Four samples, each of a class of its own but two; every score is 0, so exp(score) is 1."""
    memory = ContrastiveMemory(4, 2, 6, 0.5, 0.5, [0, 0, 1, 2], "all").double()
    memory.banks.copy_(torch.tensor([1.0, 0.0]).expand(2, 4, 2))
    student = torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, -1.0]] * 2, dtype=torch.float64, requires_grad=True)
    assert memory.draw(torch.tensor([0, 2])) is None
    loss = memory.contrast(student, teacher, torch.tensor([0, 2]), None)
    # The mean of 1 + 6 equal scores, times 4 samples.
    assert memory.student_normaliser == memory.teacher_normaliser == 4
    p, noise = 0.25, 1.5
    positive, negative = p / (p + noise + 1e-7), noise / (p + noise + 1e-7)
    expected = -2 * (math.log(positive) + 6 * math.log(negative))  # of two terms, a mean each
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    # Positive and negatives pull along the same row, (1, 0), at 1/temperature, a half a sample.
    slope = (6 * p / (p + noise + 1e-7) - (noise + 1e-7) / (p + noise + 1e-7)) / 0.5 / 2
    torch.testing.assert_close(gradient, torch.tensor([[slope, 0.0]] * 2, dtype=torch.float64))


def test_all_negatives_need_no_generator_and_move_the_banks():
    memory = ContrastiveMemory(9, 4, 3, 0.1, 0.5, torch.arange(9) % 3, "all")
    student, teacher = unit(2, 4).float(), unit(2, 4, seed=1).float()
    before, state = memory.banks.clone(), torch.get_rng_state()
    memory(student, teacher, torch.tensor([0, 4]))
    assert torch.equal(torch.get_rng_state(), state)
    moved = (memory.banks != before).any(2)
    assert moved.nonzero()[:, 1].tolist() == [0, 4, 0, 4]


def test_a_loaded_memory_asks_again_whether_it_has_normalisers():
    memory, fresh = (ContrastiveMemory(9, 4, 3, 0.1, 0.5) for _ in range(2))
    state = {name: x.clone() for name, x in fresh.state_dict().items()}
    for _ in range(2):
        memory.load_state_dict(state)
        memory(unit(2, 4).float(), unit(2, 4, seed=1).float(), torch.tensor([0, 4]))
        assert (memory.normalisers > 0).all()


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_temperature_must_be_positive(value):
    with pytest.raises(ValueError, match=f"temperature is {value}, must be positive"):
        ContrastiveMemory(10, 4, 2, value, 0.5)


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
