"""The terms under which students learn: exact as an online teacher, with gradients where due."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from toys import crd, fused, generator, kd, table

from richkd import losses, models
from richkd.base.errors import InputError
from richkd.classifiers import Loaded
from richkd.losses import ContrastiveMemory
from richkd.losses.terms import TERMS
from richkd.models import ModelOutput, with_maps
from richkd.params import At, Ce, Dist, Dkd, Mlkd, Nst, Pkt, Rkd, Sp, Term
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import Recipe
from richkd.teachers.online import Online
from richkd.teachers.table import Table
from richkd.train.objective import Batch, Objective
from richkd.train.terms import Comparison, Contrast, make_objective, parts_needed

IDS, VIEWS = torch.tensor([21, 0, 3, 3, 8]), torch.tensor([17, 0, 4, 5, 11])
LABELS = torch.tensor([1, 0, 3, 3, 0])


def batch(seed=0, ids=IDS, views=VIEWS):
    return Batch(LABELS[: len(ids)], ids, views, generator(seed))


def student(batch=5, dim=6, seed=9):
    draw = generator(seed)
    return ModelOutput(
        torch.randn(batch, 4, generator=draw, requires_grad=True),
        torch.randn(batch, dim, generator=draw, requires_grad=True),
    )


class Net(torch.nn.Module):
    """A student of which the terms need the length of its features alone."""

    feature_dim = 6


def term(name, options, teacher):
    """The one term `name` of an objective under the teacher."""
    torch.manual_seed(0)
    labels = torch.arange(22) % 4
    objective = make_objective({"ce": Ce(), name: options}, Net(), teacher, labels)
    return objective.terms[name]


# --- losses on what is looked up ----------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_tables_give_the_loss_of_online_teachers_on_the_augmented_images(here, split, data, alpha):
    from tables import build
    from tables import table as read

    teachers = []
    for seed, arch in enumerate(("resnet8", "resnet14")):
        torch.manual_seed(seed)
        model = models.create(arch, 4)
        model(data.batch(torch.arange(22), torch.arange(22) % 18))  # moves the statistics
        teachers.append(model.eval())
        build(arch, model, data)
    recipe = Recipe(alpha, 0.5, {"teacher": 1.0, "clip": 1.0}, {})
    looked_up = Fused(recipe, read("resnet8", 4), read("resnet14", 4))
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

    found = term("kd", kd(), looked_up)(output, Batch(ids % 4, ids, view_ids, draw))
    # 16 bits of a table are the only difference.
    assert found.item() == pytest.approx(online.item(), rel=2e-4)


ON_LOGITS = {
    "kd": (kd(temperature=4.0), lambda s, t: losses.kd(s, t, 4.0)),
    "standardized kd": (
        kd(temperature=2.0, standardize=True),
        lambda s, t: losses.kd(losses.standardize(s), losses.standardize(t), 2.0),
    ),
    "dkd": (
        Dkd(weight=1.0, alpha=1.0, beta=8.0, temperature=4.0),
        lambda s, t: losses.dkd(s, t, LABELS, 1.0, 8.0, 4.0),
    ),
    "mlkd": (
        Mlkd(weight=1.0, temperatures=(2.0, 3.0)),
        lambda s, t: losses.mlkd(s, t, (2.0, 3.0)),
    ),
    "dist": (
        Dist(weight=1.0, beta=2.0, gamma=1.0, temperature=4.0),
        lambda s, t: losses.dist(s, t, 2.0, 1.0, 4.0),
    ),
}
ON_FEATURES = {
    "rkd": (
        Rkd(weight=1.0, distance_weight=25.0, angle_weight=50.0),
        lambda s, t: losses.rkd(s, t, 25.0, 50.0),
    ),
    "sp": (Sp(weight=3000.0), losses.sp),
    "pkt": (Pkt(weight=30000.0), losses.pkt),
}
TEACHERS = {"teacher": table(), "clip": table(1, dim=10, seed=1), "fused": fused()}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_FEATURES])
def test_every_loss_under_every_teacher(name, teacher):
    options, expected = (ON_LOGITS | ON_FEATURES)[name]
    part = "logits" if name in ON_LOGITS else "features"
    output, asked = student(), TEACHERS[teacher]
    found = term(name.split()[-1], options, asked)(output, batch())
    theirs = getattr(asked, part)(IDS, VIEWS)
    torch.testing.assert_close(found, expected(getattr(output, part), theirs))
    found.backward()
    assert getattr(output, part).grad.abs().sum() > 0


def test_every_term_of_params_has_its_loss_and_every_loss_its_term():
    kinds = {kind.__name__.lower() for kind in Term.__subclasses__()} - {"ce"}
    assert kinds == set(TERMS)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["ce", "kd"], ["logits"]),
        (["ce", "dkd", "kd"], ["logits"]),
        (["ce", "crd"], ["features"]),
        (["ce", "kd", "crd", "sp"], ["logits", "features"]),
        (["ce", "kd", "at"], ["logits", "maps"]),
    ],
)
def test_a_variant_asks_for_the_parts_that_its_terms_compare(names, parts):
    assert parts_needed(dict.fromkeys(names)) == parts


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("at", At(weight=1000.0, p=2.0), lambda s, t: losses.at(s, t, 2.0)),
        ("nst", Nst(weight=50.0), losses.nst),
    ],
)
def test_losses_on_maps_sum_over_the_stages(data, teacher, name, options, loss):
    student = models.create("resnet8", 4)
    online = Online(Loaded(teacher, data.preprocessing), maps=True).reader(data)
    objective = make_objective({"ce": Ce(), name: options}, student, online, data.labels)
    assert objective.needs_maps and not Objective().needs_maps
    images = data.batch(IDS, VIEWS)
    output = with_maps(student)(images)
    found = objective(output, batch())
    with torch.no_grad():
        theirs = with_maps(teacher)(images).maps
    pairs = list(zip(output.maps, theirs))
    assert len(pairs) == 3
    torch.testing.assert_close(found[name], sum(loss(*pair) for pair in pairs))
    found[name].backward()
    assert student.conv1.weight.grad.abs().sum() > 0


def test_larger_maps_are_averaged_to_the_size_of_the_smaller():
    class Maps(Table):
        def maps(self, ids, view_ids):
            return (torch.arange(80.0).reshape(5, 1, 4, 4),)

    own = torch.randn(5, 3, 2, 2, generator=generator())
    output = ModelOutput(*student()).float()
    comparison = Comparison("nst", Maps({}, 4), {})
    found = comparison._maps((own,), Maps({}, 4).maps(IDS, VIEWS))
    pooled = F.avg_pool2d(torch.arange(80.0).reshape(5, 1, 4, 4), 2)
    torch.testing.assert_close(found, losses.nst(own, pooled))
    assert output.maps == ()


# --- contrast -----------------------------------------------------------------------------------


def test_a_centre_table_is_fused_with_one_of_all_views():
    teacher, clip = table(18), table(1, seed=1)
    recipe = Recipe(0.25, 0.5, {"teacher": 1.0, "clip": 1.0}, {})
    mixed = Fused(recipe, teacher, clip).logits(IDS, VIEWS)
    expected = 0.25 * teacher.logits(IDS, VIEWS) + 0.75 * clip.logits(IDS, VIEWS * 0)
    torch.testing.assert_close(mixed, expected)


def contrast(lam=0.7, labels=None, teacher=None):
    torch.manual_seed(0)
    labels = torch.arange(22) % 4 if labels is None else labels
    return Contrast(6, teacher or fused(lam=lam), labels, crd().options)


def head(layer, features):
    return F.normalize(features @ layer.weight.T + layer.bias)


def test_fused_contrast_is_crd_against_the_fused_heads():
    crd, output = contrast(), student()
    banks = {name: tensor.clone() for name, tensor in crd.memory.state_dict().items()}
    value = crd(output, batch())

    both = fused()
    teacher = head(crd.embedder.teacher.head, both.teacher.features(IDS, VIEWS))
    clip = head(crd.embedder.clip.head, both.clip.features(IDS, VIEWS))
    mixed = F.normalize(0.7 * teacher + 0.3 * clip)
    crd.memory.load_state_dict(banks)
    negatives = crd.memory.draw(IDS, generator())
    student_ = head(crd.head, output.features)
    torch.testing.assert_close(value, crd.memory(student_, mixed, IDS, negatives))


@pytest.mark.parametrize("name", ["teacher", "clip"])
def test_contrast_under_one_teacher_has_one_head_beside_the_student_s(name):
    crd, output = contrast(teacher=TEACHERS[name]), student()
    assert len(list(crd.parameters())) == 4  # two weights, two biases
    banks = {key: tensor.clone() for key, tensor in crd.memory.state_dict().items()}
    value = crd(output, batch())
    theirs = head(crd.embedder.head, TEACHERS[name].features(IDS, VIEWS))
    crd.memory.load_state_dict(banks)
    negatives = crd.memory.draw(IDS, generator())
    torch.testing.assert_close(
        value, crd.memory(head(crd.head, output.features), theirs, IDS, negatives)
    )


def test_gradients_reach_the_student_and_the_three_heads():
    crd, output = contrast(), student()
    crd(output, batch()).backward()
    assert len(list(crd.parameters())) == 6  # three weights, three biases
    assert all(p.grad.abs().sum() > 0 for p in crd.parameters())
    assert (output.features.grad.abs().sum(1) > 0).all() and output.logits.grad is None


@pytest.mark.parametrize("lam, idle", [(1.0, "clip"), (0.0, "teacher")])
def test_a_teacher_without_a_share_gets_no_gradient(lam, idle):
    crd = contrast(lam)
    crd(student(), batch()).backward()
    moved = {
        name: getattr(crd.embedder, name).head.weight.grad.abs().sum() > 0
        for name in ("teacher", "clip")
    }
    assert moved == {name: name != idle for name in moved}


def test_a_sample_of_the_positives_class_is_never_a_negative():
    # One image of each class but 0: the bank rows of class 0 must not matter to its positives.
    labels = torch.tensor([0] * 19 + [1, 2, 3])
    ids, views = torch.tensor([0, 7]), torch.tensor([2, 3])
    values = []
    for scale in (1.0, -3.0):
        crd = contrast(labels=labels)
        others = [i for i in range(19) if i not in ids]
        crd.memory.teacher_bank[others] *= scale
        crd.memory.student_bank[others] *= scale
        values.append(crd(student(2), batch(ids=ids, views=views)))
    assert values[0] == values[1]


def test_negatives_follow_from_the_generator():
    values = [contrast()(student(), batch(seed)) for seed in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


def test_banks_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**6))
    options = crd().options | {"dim": 60_000}
    with pytest.raises(InputError, match="the banks of crd take 0.0 GB of memory, 0.0 are free: "):
        Contrast(6, table(), LABELS, options)


@pytest.mark.parametrize(
    ("negatives", "kind"),
    [("auto", "per_sample"), ("per_sample", "per_sample"), ("shared", "shared"), ("all", "all")],
)
def test_how_negatives_are_drawn_is_an_option(negatives, kind):
    memory = Contrast(6, table(), torch.arange(22) % 4, crd(negatives=negatives).options).memory
    assert isinstance(memory, ContrastiveMemory) and memory.kind == kind


# --- objectives ---------------------------------------------------------------------------------


def objective(**options):
    torch.manual_seed(0)
    return make_objective({"ce": Ce(), **options}, Net(), fused(), torch.arange(22) % 4)


def test_an_objective_weighs_its_terms_and_names_them():
    made = objective(ce=Ce(weight=0.5), kd=kd(), crd=crd())
    output = student()
    values = made(output, batch())
    assert list(values) == ["ce", "kd", "crd"]
    total = 0.5 * values["ce"] + 3 * values["kd"] + 0.8 * values["crd"]
    torch.testing.assert_close(made.total(values.values()), total)
    torch.testing.assert_close(values["ce"], F.cross_entropy(output.logits, LABELS))
    torch.testing.assert_close(values["kd"], made.terms["kd"](output, batch()))


@pytest.mark.parametrize("name", ["ce", "kd"])
def test_a_warm_up_raises_the_weight_epoch_by_epoch(name):
    weight = {"ce": 1.0, "kd": 3.0}
    options = {"ce": Ce(), "kd": kd()}
    more = {"weight": weight[name], "warm_up": 4}
    options[name] = type(options[name])(**options[name].options | more)
    made, output = objective(**options), student()
    for epoch, share in ((1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0), (240, 1.0)):
        made.begin_epoch(epoch)
        values = made(output, batch())
        shares = {x: share if x == name else 1.0 for x in weight}
        total = sum(shares[x] * weight[x] * values[x] for x in weight)
        torch.testing.assert_close(made.total(values.values()), total)
    assert "epoch" not in made.state_dict()


def test_an_objective_without_terms_is_cross_entropy():
    output = student()
    alone = Objective()
    values = alone(output, batch())
    assert alone.total(values.values()) == values["ce"] == F.cross_entropy(output.logits, LABELS)


def test_an_objective_learns_what_its_terms_learn():
    made = objective(kd=kd(), crd=crd())
    assert len(list(made.parameters())) == 6
    assert "terms.crd.memory.banks" in made.state_dict()


def test_losses_of_halved_outputs_are_in_32_bits():
    output = ModelOutput(*(tensor.bfloat16() for tensor in student()))
    values = objective(kd=kd(), crd=crd())(output, batch())
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert all(value.isfinite() for value in values.values())


@pytest.mark.parametrize("negatives", ["per_sample", "shared", "all"])
def test_what_is_drawn_before_is_what_the_term_would_draw(negatives):
    made, output = objective(crd=crd(negatives=negatives)), student()
    state = {name: x.clone() for name, x in made.state_dict().items()}
    before = made.draw(batch(seed=3))
    assert (before.negatives is None) == (negatives == "all")
    drawn = made(output, before)
    made.load_state_dict(state)
    assert made(output, batch(seed=3))["crd"] == drawn["crd"]
