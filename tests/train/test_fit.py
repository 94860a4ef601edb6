"""Training: what it computes, that a killed run ends where the unbroken does, and ways to run a step."""

import dataclasses
import math
import shutil

import pytest
import torch
from torch import nn

from richkd import models
from richkd.base import resume
from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.classifiers import Loaded
from richkd.data.resident import ResidentSet
from richkd.engine import accuracy, predict, start
from richkd.losses import ContrastiveMemory
from richkd.models import ModelOutput
from richkd.params import Runtime, Training
from richkd.teachers.lookup import Online, Streamed, Table
from richkd.train.fit import Run, fit
from richkd.train.objective import Objective
from richkd.train.terms import FusedContrast, LogitDistillation, fused_logits

CPU = torch.device("cpu")
TRAINING = Training(
    arch="resnet8", epochs=4, batch_size=8, lr=0.05, schedule="onecycle", milestones=(),
    momentum=0.9, weight_decay=5e-4,
)  # fmt: skip
RUNTIME = Runtime(
    device="auto", precision="fp32", deterministic=False, step="auto", seeds_at_once=1
)  # fmt: skip


def training(**changes):
    return dataclasses.replace(TRAINING, **changes)


def network(seed=0):
    torch.manual_seed(seed)
    return models.create("resnet8", 4)


def tables():
    """Two teachers of 22 images in 18 views, four classes."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((18, 22, 4), (18, 22, 12)), ((1, 22, 4), (1, 22, 10))
    return [Table(*(torch.randn(s, generator=draw) for s in pair)) for pair in shapes]


def streamed(table, device):
    """The same rows in shards, left where they are."""
    shards = {name: list(x.flatten(0, 1).split(50)) for name, x in table.parts.items()}
    views, images, _ = table.parts["logits"].shape
    return Streamed(shards, images if views > 1 else None, device)


def fused_objective(data):
    teacher, clip = tables()
    memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, data.labels)
    return Objective(
        1.0,
        kd=(3.0, LogitDistillation(fused_logits(teacher, clip, 0.7), 3.0)),
        crd=(0.8, FusedContrast(64, teacher, clip, 0.7, memory)),
    )


def prepare(
    model, objective, data, how=TRAINING, seed=0, checkpoint=("run", "key"), tables=(), **runtime
):
    ids = torch.arange(len(data), device=data.device)
    validation = data.batch(ids, torch.full_like(ids, data.views.center)), data.labels
    runtime = dataclasses.replace(RUNTIME, **runtime)
    checkpoint = Checkpoint(*checkpoint)
    return Run(
        model, objective, data, validation, how, seed, runtime, checkpoint, "test", tables
    )  # fmt: skip


def run(*arguments, **more):
    prepared = prepare(*arguments, **more)
    fit([prepared])
    return prepared.history


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


class Slope(nn.Module):
    """Its loss is its one weight, so that each step moves the weight by the learning rate."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, images):
        features = self.weight.expand(len(images), 1)
        return ModelOutput(features.expand(-1, 4), features)


class Mean(nn.Module):
    def forward(self, output, labels, ids, view_ids, draw):
        return {"loss": output.features.mean()}


# --- fit ----------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_reports_every_term(here, data):
    model = network()
    history = run(model, fused_objective(data), data, training(epochs=20))
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["ce"] < history[0]["ce"]
    for row in history:
        assert row["loss"] == pytest.approx(row["ce"] + 3 * row["kd"] + 0.8 * row["crd"], rel=1e-5)


def test_the_validation_accuracy_is_that_of_the_model_as_it_is_left(here, data):
    model = network()
    history = run(model, Objective(), data, training(epochs=25))
    centre = torch.full((22,), data.views.center)
    logits, _ = predict(model, data.batch(torch.arange(22), centre), 7)
    assert history[-1]["validation_accuracy"] == accuracy(logits, data.labels)
    assert history[-1]["train_accuracy"] > 0.7  # chance is a quarter
    # Ten times a run, at its end always.
    validated = [row["epoch"] for row in history if "validation_accuracy" in row]
    assert validated == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25]


def test_the_rate_falls_at_the_milestones_and_the_last_epoch_is_kept(here, data):
    model = Slope()
    how = training(epochs=4, schedule="step", milestones=(1, 3), momentum=0.0, weight_decay=0.0)
    history = run(model, Mean(), data, how)
    steps = [0.05] * 3 + [0.005] * 6 + [0.0005] * 3  # three batches an epoch: 8, 8 and 6 images
    position, expected = 0.0, []
    for epoch in range(4):
        losses = []
        for step in steps[3 * epoch : 3 * epoch + 3]:
            losses.append(position)
            position -= step
        expected.append((8 * losses[0] + 8 * losses[1] + 6 * losses[2]) / 22)
    assert [row["loss"] for row in history] == pytest.approx(expected, rel=1e-9)
    assert model.weight.item() == pytest.approx(-sum(steps), rel=1e-9)


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing(here, data):
    model = Slope()
    how = training(epochs=20, momentum=0.0, weight_decay=0.0)
    losses = [row["loss"] for row in run(model, Mean(), data, how)]
    pace = [before - after for before, after in zip(losses, losses[1:])]
    assert pace.index(max(pace)) in (4, 5, 6, 7)  # 30 % of the way, and momentum behind it
    assert pace[-1] < 0.1 * max(pace) and pace[0] < 0.3 * max(pace)


@pytest.mark.parametrize("schedule", ["step", "onecycle"])
def test_momentum_counts(here, data, schedule):
    ends = []
    for momentum in (0.0, 0.5):
        model = Slope()
        how = training(schedule=schedule, momentum=momentum, weight_decay=0.0)
        run(model, Mean(), data, how, checkpoint=(f"{momentum}", "key"))
        ends.append(model.weight.item())
    assert ends[1] < 1.3 * ends[0] < 0


def test_weight_decay_counts(here, data):
    model = Slope()
    nn.init.constant_(model.weight, 8.0)
    how = training(epochs=1, schedule="step", momentum=0.0, weight_decay=1.0)
    run(model, Mean(), data, how)
    assert model.weight.item() == pytest.approx((8 + 1) * 0.95**3 - 1, rel=1e-9)


def test_the_seed_decides_and_nothing_else(here, data):
    states = []
    for number, seed in enumerate((1, 1, 2)):
        model = network()  # leaves one global state, which the objective starts from
        objective = fused_objective(data)
        torch.manual_seed(number)  # from here on it must not matter
        run(model, objective, data, seed=seed, checkpoint=(f"{number}", "key"))
        states.append(model.state_dict())
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_more_images_a_batch_than_there_are(here, data):
    assert run(network(), Objective(), data, training(batch_size=64, epochs=1))[0]["epoch"] == 1


def test_bf16_trains_and_keeps_losses_and_weights_in_32_bits(here, data):
    model = network()
    objective = fused_objective(data)
    history = run(model, objective, data, training(epochs=2), precision="bf16")
    assert all(math.isfinite(row["loss"]) for row in history)
    parameters = [*model.parameters(), *objective.parameters()]
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


# --- resuming -----------------------------------------------------------------------------------

OBJECTIVES = {"ce": lambda data: Objective(), "LF": fused_objective}


@pytest.mark.parametrize("schedule", ["step", "onecycle"])
@pytest.mark.parametrize("name", OBJECTIVES)
# Three batches an epoch, then the validation: killed at once, as epoch 2 is validated, amid 4.
@pytest.mark.parametrize("calls", [0, 7, 13])
def test_a_killed_run_ends_bit_for_bit_where_the_unbroken_does(
    here, data, killed_after, name, schedule, calls
):
    how = training(epochs=6, schedule=schedule, milestones=(2, 4))
    model = network()
    objective = OBJECTIVES[name](data)
    history = run(model, objective, data, how, checkpoint=("unbroken", "key"))

    killed = network()
    with killed_after(killed, calls):
        run(killed, OBJECTIVES[name](data), data, how)

    # Another start, of which nothing is left where there is a checkpoint.
    resumed = network(seed=0 if calls == 0 else 1)
    again = OBJECTIVES[name](data)
    assert run(resumed, again, data, how) == history
    assert same(resumed.state_dict(), model.state_dict())
    assert same(again.state_dict(), objective.state_dict())


def test_a_finished_run_is_not_trained_again(here, data):
    model = network()
    history = run(model, Objective(), data)
    loaded = network(seed=1)
    loaded.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    assert run(loaded, Objective(), data) == history
    assert same(loaded.state_dict(), model.state_dict())


def test_another_experiment_never_resumes(here, data):
    run(network(seed=1), Objective(), data, training(epochs=2), checkpoint=("run", "one"))
    models_ = network(), network()
    run(models_[0], Objective(), data, checkpoint=("run", "another"))
    run(models_[1], Objective(), data, checkpoint=("fresh", "another"))
    assert same(models_[0].state_dict(), models_[1].state_dict())


def test_an_experiment_is_its_params_and_the_content_of_its_inputs(here):
    for name, text in (("a", "same"), ("b", "other")):
        (here / name).write_text(text)
    first = resume.key({"lr": 0.1, "seeds": [0, 1]}, ["a"])
    assert resume.key({"seeds": [0, 1], "lr": 0.1}, ["a"]) == first
    others = [resume.key({"lr": 0.2, "seeds": [0, 1]}, ["a"])]
    others += [resume.key({"lr": 0.1, "seeds": [0, 1]}, inputs) for inputs in ([], ["b"])]
    (here / "a").write_text("changed")
    others.append(resume.key({"lr": 0.1, "seeds": [0, 1]}, ["a"]))
    assert first not in others and len(set(others)) == 4


class Breaks(Objective):
    """Cross entropy that is not a number from some batch on."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def forward(self, *arguments):
        self.left -= 1
        terms = super().forward(*arguments)
        return terms if self.left >= 0 else {**terms, "loss": terms["loss"] * math.nan}


def test_a_broken_epoch_is_an_error_and_leaves_no_checkpoint(here, data):
    checkpoint = Checkpoint("run", "key")
    with pytest.raises(InputError, match="test: the loss is nan in epoch 1: lower lr"):
        run(network(), Breaks(0), data)
    assert checkpoint.load(CPU) is None
    with pytest.raises(InputError, match="test: the loss is nan in epoch 3: lower lr"):
        run(network(), Breaks(7), data)
    state = checkpoint.load(CPU)
    assert [row["epoch"] for row in state["history"]] == [1, 2]
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


# --- side by side, and how a step runs ----------------------------------------------------------


def test_runs_side_by_side_end_bit_for_bit_where_each_alone_does(here, data):
    def pair(at_once):
        runs = []
        for seed in (0, 1):
            model = network(seed)
            objective = fused_objective(data)
            name = f"{at_once}{seed}"
            runs.append(prepare(model, objective, data, seed=seed, checkpoint=(name, "key")))
            if not at_once:
                fit(runs[-1:])
        if at_once:
            fit(runs)
        return runs

    for alone, beside in zip(pair(False), pair(True)):
        assert beside.history == alone.history
        for name in ("model", "objective"):
            assert same(beside.parts[name].state_dict(), alone.parts[name].state_dict())


def test_runs_side_by_side_go_on_from_epochs_of_their_own(here, data, killed_after):
    ends = {}
    for killed in (False, True):
        made = [network(seed) for seed in (0, 1)]
        runs = [
            prepare(model, Objective(), data, seed=seed, checkpoint=(f"{killed}{seed}", "key"))
            for seed, model in enumerate(made)
        ]
        if killed:
            with killed_after(made[1], 4):  # the other is a step ahead
                fit(runs)
            made = [network(seed) for seed in (0, 1)]
            runs = [
                prepare(model, Objective(), data, seed=seed, checkpoint=(f"{killed}{seed}", "key"))
                for seed, model in enumerate(made)
            ]
            assert [len(run.history) for run in runs] == [1, 1]
        fit(runs)
        ends[killed] = [model.state_dict() for model in made]
    assert all(same(*pair) for pair in zip(ends[False], ends[True]))


def test_a_streamed_table_trains_as_a_resident_one(here, data):
    states = []
    for kind in (Table, Streamed):
        model = network()
        if kind is Table:
            teacher, clip = tables()
        else:
            teacher, clip = (streamed(table, CPU).reader(data) for table in tables())
        memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, data.labels)
        objective = Objective(
            1.0,
            kd=(3.0, LogitDistillation(fused_logits(teacher, clip, 0.7), 3.0)),
            crd=(0.8, FusedContrast(64, teacher, clip, 0.7, memory)),
        )
        run(model, objective, data, checkpoint=(kind.__name__, "key"), tables=(teacher, clip))
        states.append(model.state_dict())
    assert same(*states)


def test_a_teacher_that_runs_along_trains_as_the_table_of_all_views(here, data):
    model = network(seed=7).eval()
    pairs = torch.arange(22).repeat(18), torch.arange(18).repeat_interleave(22)
    with torch.no_grad():
        rows = [x.view(18, 22, -1) for x in model(data.batch(*pairs))]
    before, calls = {name: x.clone() for name, x in model.state_dict().items()}, []
    model.register_forward_hook(lambda *_: calls.append(1))
    online = Online(Loaded(model, data.mean, data.std, None)).reader(data)
    losses = []
    for teacher in (Table(*rows), online):
        torch.manual_seed(0)
        memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, data.labels)
        contrast = FusedContrast(64, teacher, tables()[1], 0.7, memory)
        objective = Objective(
            1.0, kd=(3.0, LogitDistillation(teacher.logits, 3.0)), crd=(0.8, contrast)
        )
        name = type(teacher).__name__
        how = training(epochs=2, lr=0.01)  # the less, the less rounding grows
        history = run(network(), objective, data, how, checkpoint=(name, "key"), tables=[teacher])
        losses.append([row[term] for row in history for term in ("loss", "ce", "kd", "crd")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(calls) == 2 * 3  # a step each, both terms together
    assert not model.training and same(model.state_dict(), before)


def test_deterministic_training_repeats_bit_for_bit(here, data):
    start("cpu", deterministic=True)
    states = []
    for name in "ab":
        model = network()
        objective = fused_objective(data)
        run(model, objective, data, checkpoint=(name, "key"), deterministic=True)
        states.append(model.state_dict())
    start("cpu")
    assert same(*states)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_trains_as_the_plain_one(here, data):
    ends = []
    for step in ("eager", "compile"):
        model = network()
        history = run(
            model, Objective(), data, training(epochs=2), checkpoint=(step, "key"), step=step
        )
        ends.append((history[-1]["loss"], model.state_dict().keys()))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-3)
    assert ends[0][1] == ends[1][1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_graph_needs_cuda(here, data):
    with pytest.raises(
        InputError, match="runtime.step is 'graph': needs a CUDA device, one process"
    ):
        run(network(), Objective(), data, step="graph")


# --- on CUDA ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_cuda_trains_and_resumes(here, split, data, killed_after, precision, step):
    cuda = start("auto")
    assert cuda.type == "cuda"
    resident = ResidentSet(split, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], data.views, cuda)
    model, how = network().to(cuda), training(epochs=10)
    with killed_after(model, 5):
        run(model, Objective(), resident, how, precision=precision, step=step)
    history = run(model, Objective(), resident, how, precision=precision, step=step)
    assert len(history) == 10 and history[-1]["loss"] < history[0]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [Table, Streamed])
@pytest.mark.parametrize("schedule", ["step", "onecycle"])
def test_a_graph_trains_as_the_plain_step_and_side_by_side(
    here, split, data, kind, schedule, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cuda, histories = start("auto"), {}
    resident = ResidentSet(split, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], data.views, cuda)
    how = training(epochs=5, schedule=schedule, milestones=(3,))

    def prepared(step, seed):
        if kind is Table:
            read = [Table(**{k: x.to(cuda) for k, x in t.parts.items()}) for t in tables()]
        else:
            read = [streamed(table, cuda) for table in tables()]
        torch.manual_seed(seed)
        memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, resident.labels.cpu())
        model = network(seed).to(cuda)
        kd = LogitDistillation(fused_logits(*read, 0.7), 3.0)
        crd = FusedContrast(64, *read, 0.7, memory)
        objective = Objective(1.0, kd=(3.0, kd), crd=(0.8, crd)).to(cuda)
        name = f"{step}{seed}"
        return prepare(
            model, objective, resident, how, seed, (name, "key"), read, step=step
        )  # fmt: skip

    for step in ("eager", "graph"):
        runs = [prepared(step, seed) for seed in (0, 1)]
        fit(runs)
        histories[step] = [[row["loss"] for row in run.history] for run in runs]
        assert all(bool(run.captured) == (step == "graph") for run in runs)
    for eager, graph in zip(histories["eager"], histories["graph"]):
        assert graph == pytest.approx(eager, rel=0.02)  # atomics add in another order
    assert histories["graph"][0] != histories["graph"][1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_step_never_waits_for_the_device(here, split, data, step):
    cuda = start("auto")
    resident = ResidentSet(split, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], data.views, cuda)
    read = [Table(**{k: x.to(cuda) for k, x in t.parts.items()}) for t in tables()]
    memory = ContrastiveMemory(22, 8, 16, 0.1, 0.5, resident.labels.cpu())
    kd = LogitDistillation(fused_logits(*read, 0.7), 3.0)
    crd = FusedContrast(64, *read, 0.7, memory)
    objective = Objective(1.0, kd=(3.0, kd), crd=(0.8, crd)).to(cuda)
    prepared = prepare(
        network().to(cuda), objective, resident, training(epochs=9, batch_size=2), step=step
    )  # fmt: skip
    with torch.cuda.stream(prepared.stream):
        steps = prepared.train()
        for _ in range(6):  # the first few may set up; a graph is captured after three
            next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):  # of eleven an epoch
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
