"""The terms under which students learn: exact as an online teacher, with gradients where due."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from richkd import losses, models
from richkd.losses import ContrastiveMemory
from richkd.models import ModelOutput
from richkd.teachers import caching
from richkd.teachers.lookup import Table
from richkd.train.objective import Objective
from richkd.train.terms import FusedContrast, LogitDistillation, fused_logits

CPU = torch.device("cpu")
IDS, VIEWS = torch.tensor([21, 0, 3, 3, 8]), torch.tensor([17, 0, 4, 5, 11])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(views, classes=4, dim=12, seed=0):
    draw = generator(seed)
    shapes = (views, 22, classes), (views, 22, dim)
    return Table(*(torch.randn(shape, generator=draw) for shape in shapes))


def student(batch=5, dim=6, seed=9):
    draw = generator(seed)
    return ModelOutput(
        torch.randn(batch, 4, generator=draw, requires_grad=True),
        torch.randn(batch, dim, generator=draw, requires_grad=True),
    )


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_tables_give_the_loss_of_online_teachers_on_the_augmented_images(here, split, data, alpha):
    teachers, tables = [], []
    for seed, arch in enumerate(("resnet8", "resnet14")):
        torch.manual_seed(seed)
        model = models.create(arch, 4)
        model(data.batch(torch.arange(22), torch.arange(22) % 18))  # moves the statistics
        teachers.append(model.eval())
        validation = torch.zeros(1, 3, 8, 8)
        caching.build(f"cache/{arch}", model, data, range(18), validation, 5, "fp32", {}, "key")
        parts = {x: np.load(f"cache/{arch}/{x}-000.npy") for x in ("logits", "features")}
        views = {part: torch.from_numpy(x).view(18, 22, -1) for part, x in parts.items()}
        tables.append(Table(**views))
    draw = generator(1)
    ids, view_ids = torch.randint(22, (64,), generator=draw), data.views.sample(64, draw)
    output = student(64)

    # Online: augment the pixels, normalise, run both teachers, fuse.
    pixels = torch.from_numpy(split.images)[ids].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    augmented = (data.views.apply(pixels, view_ids) - mean) / std
    with torch.no_grad():
        first, second = (teacher(augmented).logits for teacher in teachers)
    online = losses.kd(output.logits, alpha * first + (1 - alpha) * second, 3.0)

    term = LogitDistillation(fused_logits(*tables, alpha), 3.0)
    # 16 bits of a table are the only difference.
    assert term(output, ids, view_ids, draw).item() == pytest.approx(online.item(), rel=2e-4)


def test_a_centre_table_is_fused_with_one_of_all_views():
    teacher, clip = table(18), table(1, seed=1)
    fused = fused_logits(teacher, clip, 0.25)(IDS, VIEWS)
    expected = 0.25 * teacher.logits(IDS, VIEWS) + 0.75 * clip.logits(IDS, VIEWS * 0)
    torch.testing.assert_close(fused, expected)


def contrast(lam=0.7, labels=None):
    torch.manual_seed(0)
    labels = torch.arange(22) % 4 if labels is None else labels
    memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, labels)
    return FusedContrast(6, table(18), table(1, dim=10, seed=1), lam, memory)


def test_fused_contrast_is_crd_against_the_fused_heads():
    term, output = contrast(), student()
    banks = {name: tensor.clone() for name, tensor in term.memory.state_dict().items()}
    value = term(output, IDS, VIEWS, generator())

    def head(layer, features):
        return F.normalize(features @ layer.weight.T + layer.bias)

    teacher = head(term.teacher_head, term.teacher.features(IDS, VIEWS))
    clip = head(term.clip_head, term.clip.features(IDS, VIEWS))
    fused = F.normalize(0.7 * teacher + 0.3 * clip)
    term.memory.load_state_dict(banks)
    negatives = term.memory.draw(IDS, generator())
    student_ = head(term.student_head, output.features)
    torch.testing.assert_close(value, term.memory(student_, fused, IDS, negatives))


def test_gradients_reach_the_student_and_the_three_heads():
    term, output = contrast(), student()
    term(output, IDS, VIEWS, generator()).backward()
    assert len(list(term.parameters())) == 6  # three weights, three biases
    assert all(p.grad.abs().sum() > 0 for p in term.parameters())
    assert (output.features.grad.abs().sum(1) > 0).all() and output.logits.grad is None


@pytest.mark.parametrize("lam, idle", [(1.0, "clip_head"), (0.0, "teacher_head")])
def test_a_teacher_without_a_share_gets_no_gradient(lam, idle):
    term = contrast(lam)
    term(student(), IDS, VIEWS, generator()).backward()
    heads = ("teacher_head", "clip_head")
    moved = {name: getattr(term, name).weight.grad.abs().sum() > 0 for name in heads}
    assert moved == {name: name != idle for name in heads}


def test_a_sample_of_the_positives_class_is_never_a_negative():
    # One image of each class but 0: the bank rows of class 0 must not matter to its positives.
    labels = torch.tensor([0] * 19 + [1, 2, 3])
    ids, views = torch.tensor([0, 7]), torch.tensor([2, 3])
    values = []
    for scale in (1.0, -3.0):
        term = contrast(labels=labels)
        others = [i for i in range(19) if i not in ids]
        term.memory.teacher_bank[others] *= scale
        term.memory.student_bank[others] *= scale
        values.append(term(student(2), ids, views, generator()))
    assert values[0] == values[1]


def test_negatives_follow_from_the_generator():
    values = [contrast()(student(), IDS, VIEWS, generator(seed)) for seed in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


# --- objectives ---------------------------------------------------------------------------------

LABELS = torch.tensor([1, 0, 3, 3, 0])


def test_an_objective_weighs_its_terms_and_names_them():
    kd, crd = LogitDistillation(table(18).logits, 4.0), contrast()
    output = student()
    terms = Objective(0.5, kd=(3.0, kd), crd=(0.8, crd))(output, LABELS, IDS, VIEWS, generator())
    assert list(terms) == ["loss", "ce", "kd", "crd"]
    total = 0.5 * terms["ce"] + 3 * terms["kd"] + 0.8 * terms["crd"]
    torch.testing.assert_close(terms["loss"], total)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(output.logits, LABELS))
    torch.testing.assert_close(terms["kd"], kd(output, IDS, VIEWS, generator()))


def test_an_objective_without_terms_is_cross_entropy():
    output = student()
    terms = Objective()(output, LABELS, IDS, VIEWS, generator())
    assert terms["loss"] == terms["ce"] == F.cross_entropy(output.logits, LABELS)


def test_an_objective_learns_what_its_terms_learn():
    kd = LogitDistillation(table(18).logits, 4.0)
    objective = Objective(1.0, kd=(1.0, kd), crd=(1.0, contrast()))
    assert len(list(objective.parameters())) == 6
    assert "terms.crd.memory.student_bank" in objective.state_dict()


def test_losses_of_halved_outputs_are_in_32_bits():
    output = ModelOutput(*(tensor.bfloat16() for tensor in student()))
    kd = LogitDistillation(table(18).logits, 4.0)
    objective = Objective(1.0, kd=(1.0, kd), crd=(1.0, contrast()))
    terms = objective(output, LABELS, IDS, VIEWS, generator())
    assert {value.dtype for value in terms.values()} == {torch.float32}
