"""Training: what it computes, how a killed run ends, and ways to run a step."""

import dataclasses
import math
import shutil

import pytest
import torch
from torch import nn
from toys import crd, fused, kd, on, recipe, streamed

from richkd import models
from richkd.base import resume
from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.classifiers import Loaded
from richkd.data.resident import ResidentSet
from richkd.engine import accuracy, pick_device, predict
from richkd.models import ModelOutput
from richkd.params import Ce, Runtime, Training
from richkd.teachers.fused import Fused
from richkd.teachers.online import Online
from richkd.teachers.table import Streamed, Table
from richkd.train.batchnorm import count_apart
from richkd.train.fit import Plan, Run, Sources, fit
from richkd.train.objective import Objective
from richkd.train.terms import make_objective

CPU = torch.device("cpu")
TRAINING = Training(
    arch="resnet8", epochs=4, batch_size=8, lr=0.05, schedule="onecycle", milestones=(),
    momentum=0.9, weight_decay=5e-4,
)  # fmt: skip
RUNTIME = Runtime(
    device="auto", precision="fp32", deterministic=False, step="auto", seeds_at_once=1, tf32=False
)  # fmt: skip


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    monkeypatch.setattr(resume, "SECONDS", 0.0)


def training(**changes):
    return dataclasses.replace(TRAINING, **changes)


def network(seed=0):
    torch.manual_seed(seed)
    return models.create("resnet8", 4)


def fused_objective(data, teacher=None):
    options = {"ce": Ce(), "kd": kd(), "crd": crd()}
    return make_objective(options, network(), teacher or fused(), data.labels)


def prepare(
    model, objective, data, how=TRAINING, seed=0, checkpoint=("run", "key"), teacher=None, **runtime
):
    ids = torch.arange(len(data), device=data.device)
    validation = data.batch(ids, torch.full_like(ids, data.views.center)), data.labels
    runtime = dataclasses.replace(RUNTIME, **runtime)
    sources, plan = Sources(data, validation, teacher), Plan(how, runtime, seed)
    return Run(model, objective, sources, plan, Checkpoint(*checkpoint), "test")


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


class Mean(Objective):
    def forward(self, output, batch):
        return {"ce": output.features.mean()}


# --- fit ----------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_reports_every_term(here, data):
    model = network()
    history = run(model, fused_objective(data), data, training(epochs=20))
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["ce"] < history[0]["ce"]
    for row in history:
        assert row["loss"] == pytest.approx(row["ce"] + 3 * row["kd"] + 0.8 * row["crd"], rel=1e-5)


def test_a_step_goes_down_the_gradient_of_the_weighted_sum(here, data):
    one_step = training(
        epochs=1, batch_size=22, schedule="step", milestones=(), momentum=0.0, weight_decay=0.0
    )
    model = network()
    terms = {"ce": Ce(weight=0.5), "kd": kd()}
    objective = make_objective(terms, model, fused(), data.labels)
    prepared = prepare(model, objective, data, one_step)
    (batch,) = prepared._batches(0)
    values = objective(model(data.batch(batch.ids, batch.view_ids)), batch)
    parameters = [*model.parameters()]
    gradient = torch.autograd.grad(0.5 * values["ce"] + 3 * values["kd"], parameters)
    expected = [x.detach() - 0.05 * slope for x, slope in zip(parameters, gradient)]
    fit([prepared])
    torch.testing.assert_close(parameters, expected)
    assert prepared.history[0]["ce"] == pytest.approx(values["ce"].item())


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


class Pooled(nn.Module):
    """Its BatchNorm sees maps of one pixel, and refuses a single image."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.lengths = []

    def forward(self, images):
        if self.training:
            self.lengths.append(len(images))
        features = self.norm(images.mean((2, 3), keepdim=True)).flatten(1)
        return ModelOutput(self.head(features), features)


@pytest.mark.parametrize("batch_size", [7, 21])
def test_a_last_batch_of_one_image_is_left_out_and_that_is_said(here, data, capsys, batch_size):
    model, how = Pooled(), training(epochs=2, batch_size=batch_size, milestones=(1,))
    prepared = prepare(model, Objective(), data, how)
    said = (
        "test: each epoch leaves out 1 of 22 images, not always the same: "
        "its last batch has 1 and BatchNorm needs two\n"
    )
    assert said in capsys.readouterr().out and not model.lengths  # said before the first step
    fit([prepared])
    assert model.lengths == [batch_size] * (2 * 21 // batch_size)
    left_out = []
    for epoch in range(2):
        ids = torch.cat([batch.ids for batch in prepared._batches(epoch)])
        assert len(ids.unique()) == len(ids) == 21
        left_out.append(sum(range(22)) - int(ids.sum()))
    assert left_out[0] != left_out[1]


def test_longer_last_batches_are_whole_and_nothing_is_said(here, data, capsys):
    model = Pooled()
    run(model, Objective(), data, training(epochs=1, batch_size=20))
    assert model.lengths == [20, 2] and "leaves out" not in capsys.readouterr().out


def test_bf16_trains_and_keeps_losses_and_weights_in_32_bits(here, data):
    model = network()
    objective = fused_objective(data)
    history = run(model, objective, data, training(epochs=2), precision="bf16")
    assert all(math.isfinite(row["loss"]) for row in history)
    parameters = [*model.parameters(), *objective.parameters()]
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


# --- resuming -----------------------------------------------------------------------------------

OBJECTIVES = {"ce": lambda data: Objective(), "LF": fused_objective}


class Dropping(nn.Module):
    """A network whose steps are random: half of its features are left out."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.hidden, self.drop, self.last = nn.Linear(192, 16), nn.Dropout(0.5), nn.Linear(16, 4)

    def forward(self, images):
        features = self.drop(self.hidden(images.flatten(1)).relu())
        return ModelOutput(self.last(features), features)


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


@pytest.mark.parametrize("calls", [0, 7, 13])
def test_what_layers_draw_follows_from_the_seed_and_the_step(here, data, killed_after, calls):
    model = Dropping()
    history = run(model, Objective(), data, checkpoint=("unbroken", "key"))
    killed = Dropping()
    with killed_after(killed, calls):
        run(killed, Objective(), data)
    torch.rand(5)  # others may draw from the same generator
    resumed = Dropping()
    assert run(resumed, Objective(), data) == history
    assert same(resumed.state_dict(), model.state_dict())
    assert run(Dropping(), Objective(), data, seed=1, checkpoint=("other", "key")) != history


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
        return terms if self.left >= 0 else {"ce": terms["ce"] * math.nan}


def test_a_broken_epoch_is_an_error_and_leaves_no_checkpoint(here, data):
    checkpoint = Checkpoint("run", "key")
    with pytest.raises(InputError, match="test: diverged in epoch 1, the loss is nan: lower lr"):
        run(network(), Breaks(0), data)
    assert checkpoint.load(CPU) is None
    with pytest.raises(InputError, match="test: diverged in epoch 3, the loss is nan: lower lr"):
        run(network(), Breaks(7), data)
    state = checkpoint.load(CPU)
    assert [row["epoch"] for row in state["history"]] == [1, 2]
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize(
    ("lr", "wrong"), [(1e38, "the logits are not finite"), (1e45, "the weights are not finite")]
)
@pytest.mark.parametrize("validation", [True, False])
def test_a_model_that_the_last_step_broke_is_an_error_and_not_saved(
    here, data, lr, wrong, validation
):
    how = training(epochs=1, batch_size=22, schedule="step")  # a single step
    broken = prepare(network(), Objective(), data, how)
    broken.optimizer.param_groups[0]["lr"] = lr  # beyond what params allow
    if not validation:
        broken.validation = tuple(part[:0] for part in broken.validation)
    with pytest.raises(InputError, match=f"test: diverged in epoch 1, {wrong}: lower lr"):
        fit([broken])
    assert Checkpoint("run", "key").load(CPU) is None


def test_checkpoints_are_seconds_apart(here, data, monkeypatch):
    saved, clock = [], iter(range(0, 1000, 8))
    monkeypatch.setattr(resume, "SECONDS", 20.0)
    monkeypatch.setattr(resume.time, "monotonic", lambda: next(clock))
    save = Checkpoint.save

    def note(checkpoint, **state):
        saved.append(len(state["history"]))
        save(checkpoint, **state)

    monkeypatch.setattr(Checkpoint, "save", note)
    run(network(), Objective(), data, training(epochs=9))
    # An epoch takes 8 seconds. Saved are the first, each one 24 seconds after a save, and the last.
    assert saved == [1, 4, 7, 9]


def test_the_accuracy_on_the_test_images_stands_beside_that_on_the_validation_images(here, data):
    with_test = prepare(network(), Objective(), data, training(epochs=25))
    images, labels = with_test.validation
    with_test.test = images, (labels + 1) % 4
    fit([with_test])
    measured = [row for row in with_test.history if "test_accuracy" in row]
    assert measured == [row for row in with_test.history if "validation_accuracy" in row]
    last = measured[-1]
    assert last["test_accuracy"] <= 1 - last["validation_accuracy"] < 0.3
    plain = run(network(), Objective(), data, training(epochs=25), checkpoint=("plain", "key"))
    assert [row.pop("test_accuracy", None) for row in with_test.history].count(None) == 12
    assert with_test.history == plain  # the training does not see them


def test_without_validation_images_a_sound_model_is_kept(here, data):
    sound = prepare(network(), Objective(), data)
    sound.validation = tuple(part[:0] for part in sound.validation)
    fit([sound])
    assert "validation_accuracy" not in sound.history[-1]
    assert len(Checkpoint("run", "key").load(CPU)["history"]) == 4


# --- side by side, and how a step runs ----------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 1])
def test_runs_side_by_side_end_bit_for_bit_where_each_alone_does(here, data, threads):
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
            fit(runs, threads)
        return runs

    for alone, beside in zip(pair(False), pair(True)):
        assert beside.history == alone.history
        for name in ("model", "objective"):
            assert same(getattr(beside, name).state_dict(), getattr(alone, name).state_dict())


def test_an_error_ends_all_threads(here, data):
    before = torch.get_num_threads()
    endless = prepare(network(), Objective(), data, training(epochs=100_000))
    broken = prepare(network(), Breaks(0), data, checkpoint=("broken", "key"))
    with pytest.raises(InputError, match="test: diverged in epoch 1, the loss is nan: lower lr"):
        fit([endless, broken], threads=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("network", [network, Dropping])
def test_runs_side_by_side_go_on_from_epochs_of_their_own(here, data, killed_after, network):
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
    for name, teacher in (("table", fused()), ("streamed", streamed(fused()).reader(data))):
        model = network()
        objective = fused_objective(data, teacher)
        run(model, objective, data, checkpoint=(name, "key"), teacher=teacher)
        states.append(model.state_dict())
    assert same(*states)


def test_a_teacher_that_runs_along_trains_as_the_table_of_all_views(here, data):
    model = network(seed=7).eval()
    pairs = torch.arange(22).repeat(18), torch.arange(18).repeat_interleave(22)
    with torch.no_grad():
        logits, features = (x.view(18, 22, -1) for x in model(data.batch(*pairs)))
    before, calls = {name: x.clone() for name, x in model.state_dict().items()}, []
    model.register_forward_hook(lambda *_: calls.append(1))
    online = Online(Loaded(model, data.preprocessing)).reader(data)
    losses = []
    for conventional in (Table({"logits": logits, "features": features}, 4), online):
        teacher = Fused(recipe(), conventional, fused().clip)
        name = type(conventional).__name__
        how = training(epochs=2, lr=0.01)  # the less, the less rounding grows
        objective = fused_objective(data, teacher)
        history = run(network(), objective, data, how, checkpoint=(name, "key"), teacher=teacher)
        losses.append([row[term] for row in history for term in ("loss", "ce", "kd", "crd")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(calls) == 2 * 3  # a step each, both terms together
    assert not model.training and same(model.state_dict(), before)


class Seen(Objective):
    """Cross entropy, and a note of each epoch's number."""

    def __init__(self):
        super().__init__()
        self.numbers = []

    def begin_epoch(self, number):
        self.numbers.append(number)


def test_the_objective_is_told_the_epoch_also_after_a_kill(here, data, killed_after):
    model, objective = network(), Seen()
    with killed_after(model, 7):  # amid the second of three batches an epoch
        run(model, objective, data)
    run(network(), objective, data)
    assert objective.numbers == [1, 2, 2, 3, 4]


def test_deterministic_training_repeats_bit_for_bit(here, data):
    pick_device("cpu", deterministic=True)
    states = []
    for name in "ab":
        model = network()
        objective = fused_objective(data)
        run(model, objective, data, checkpoint=(name, "key"), deterministic=True)
        states.append(model.state_dict())
    pick_device("cpu")
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


def test_compiling_needs_a_compiler(here, data, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="runtime.step is 'compile': needs a C"):
        run(network(), Objective(), data, step="compile")


def test_batches_are_counted_by_the_end_of_an_epoch(here, data):
    model, plain = network(), network()
    run(model, Objective(), data, training(epochs=2))
    counted = [x for name, x in model.state_dict().items() if "num_batches_tracked" in name]
    assert counted and all(x == 6 for x in counted)
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("training_mode", [True, False])
def test_a_batchnorm_that_does_not_count_gives_the_same_bits(training_mode):
    plain, apart = nn.BatchNorm2d(3).train(training_mode), nn.BatchNorm2d(3).train(training_mode)
    (counter,) = count_apart(nn.Sequential(nn.ReLU(), apart))
    x = torch.randn(4, 3, 5, 5)
    for _ in range(2):
        assert torch.equal(plain(x), apart(x))
    assert torch.equal(plain.running_mean, apart.running_mean)
    assert torch.equal(plain.running_var, apart.running_var)
    assert counter is apart.num_batches_tracked and counter == 0


class Replay:
    """In place of a CUDA graph on a CPU: a replay runs the step on the inputs of its capture."""

    def __init__(self, run, batch):
        self.run, self.batch, self.replays = run, batch, 0

    def replay(self):
        self.replays += 1
        self.run._step(self.batch)


@pytest.fixture
def use_graphs(monkeypatch):
    """Call it, and runs take the path of CUDA graphs also on a CPU."""

    def use():
        monkeypatch.setattr(Run, "_graphs_wanted", lambda run: True)
        monkeypatch.setattr(Run, "_capture", lambda run, batch: Replay(run, batch))

    return use


@pytest.mark.parametrize("schedule", ["step", "onecycle"])
@pytest.mark.parametrize("saved_by_graphs", [True, False])
def test_a_graph_reads_the_rate_of_each_step_whatever_run_it_goes_on_from(
    here, data, killed_after, use_graphs, schedule, saved_by_graphs
):
    how = training(epochs=9, schedule=schedule, milestones=(4, 7))
    plain, resumed, killed = network(), network(seed=1), network()
    history = run(plain, Objective(), data, how, checkpoint=("plain", "key"))
    if saved_by_graphs:
        use_graphs()
    with killed_after(killed, 9):
        run(killed, Objective(), data, how)
    use_graphs()
    again = prepare(resumed, Objective(), data, how)
    assert type(again.optimizer.param_groups[0]["lr"]) is float
    assert isinstance(again.rate, torch.Tensor) and len(again.history) in (1, 2)
    fit([again])
    assert all(graph.replays for graph, _ in again.captured.values())
    assert {tuple(inputs[0].shape) for _, inputs in again.captured.values()} == {(8,), (6,)}
    losses = [[row["loss"] for row in rows] for rows in (again.history, history)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_saved_rate_that_is_a_tensor_becomes_a_number(here, data, killed_after, monkeypatch):
    killed = network()
    with killed_after(killed, 5):
        run(killed, Objective(), data)
    load = Checkpoint.load

    def with_a_tensor(checkpoint, device):
        state = load(checkpoint, device)
        for group in state["optimizer"]["param_groups"]:
            group["lr"] = torch.tensor(group["lr"])
        return state

    monkeypatch.setattr(Checkpoint, "load", with_a_tensor)
    assert type(prepare(network(), Objective(), data).optimizer.param_groups[0]["lr"]) is float


def test_the_rate_is_sent_when_it_changes_and_else_not(here, data, use_graphs):
    use_graphs()
    how = training(epochs=4, schedule="step", milestones=(2, 3))
    prepared = prepare(network(), Objective(), data, how)
    sent = []
    fill = prepared.rate.fill_
    prepared.rate.fill_ = lambda rate: sent.append(rate) or fill(rate)
    fit([prepared])
    assert sent == pytest.approx([0.05, 0.005, 0.0005])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_graph_needs_cuda(here, data):
    with pytest.raises(
        InputError, match="runtime.step is 'graph': needs a CUDA device, one process"
    ):
        run(network(), Objective(), data, step="graph")


# --- on CUDA ------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_cuda_trains_and_resumes(here, split, data, killed_after, precision, step):
    cuda = pick_device("auto")
    assert cuda.type == "cuda"
    resident = ResidentSet(split, data.preprocessing, data.views, cuda)
    model, how = network().to(cuda), training(epochs=10)
    with killed_after(model, 5):
        run(model, Objective().to(cuda), resident, how, precision=precision, step=step)
    history = run(model, Objective().to(cuda), resident, how, precision=precision, step=step)
    assert len(history) == 10 and history[-1]["loss"] < history[0]["loss"]


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [Table, Streamed])
@pytest.mark.parametrize("schedule", ["step", "onecycle"])
def test_a_graph_trains_as_the_plain_step_and_side_by_side(
    here, split, data, kind, schedule, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cuda, histories = pick_device("auto"), {}
    resident = ResidentSet(split, data.preprocessing, data.views, cuda)
    how = training(epochs=5, schedule=schedule, milestones=(3,))

    def prepared(step, seed):
        teacher = on(cuda, fused()) if kind is Table else streamed(fused(), cuda)
        torch.manual_seed(seed)
        model = network(seed).to(cuda)
        options = {"ce": Ce(), "kd": kd(warm_up=3), "crd": crd()}
        objective = make_objective(options, model, teacher, resident.labels).to(cuda)
        name = f"{step}{seed}"
        return prepare(model, objective, resident, how, seed, (name, "key"), teacher, step=step)

    for step in ("eager", "graph"):
        runs = [prepared(step, seed) for seed in (0, 1)]
        fit(runs)
        histories[step] = [[row["loss"] for row in run.history] for run in runs]
        assert all(bool(run.captured) == (step == "graph") for run in runs)
    for eager, graph in zip(histories["eager"], histories["graph"]):
        assert graph == pytest.approx(eager, rel=0.02)  # atomics add in another order
    assert histories["graph"][0] != histories["graph"][1]


@pytest.mark.cuda
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_step_never_waits_for_the_device(here, split, data, step):
    cuda = pick_device("auto")
    resident = ResidentSet(split, data.preprocessing, data.views, cuda)
    teacher, model = on(cuda, fused()), network().to(cuda)
    objective = fused_objective(resident, teacher).to(cuda)
    how = training(epochs=9, batch_size=2)
    prepared = prepare(model, objective, resident, how, teacher=teacher, step=step)
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
