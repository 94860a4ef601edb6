"""Two processes train as one that goes through the same halves of every batch would."""

import dataclasses
import os
import socket

import numpy as np
import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F

from richkd import distributed, engine, losses, models
from richkd.cache import Table
from richkd.dataset import Split
from richkd.distillation import FusedContrast, LogitDistillation, fused_logits
from richkd.engine import ResidentSet
from richkd.errors import InputError
from richkd.fit import Run, fit
from richkd.losses import ContrastiveMemory
from richkd.objectives import Objective
from richkd.params import Runtime, Training
from richkd.views import Views

STEPS, CLASSES, LR = 50, 4, 0.01
IMAGES = 128  # of a few, one ReLU that rounding turns over would move the loss by 1e-4
TRAINING = Training(
    arch="resnet8", epochs=STEPS, batch_size=IMAGES, lr=LR, schedule="step", milestones=(),
    momentum=0.9, weight_decay=5e-4,
)  # fmt: skip
RUNTIME = Runtime(device="cpu", precision="fp32", deterministic=False, step="auto", seeds_at_once=1)


class Kept:
    """A checkpoint that is never on disk."""

    def load(self, device):
        return None

    def save(self, **state):
        pass


def experiment(shared):
    """The data, and an LF objective with its model, the same in every process."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 8, 8, 3), generator=draw, dtype=torch.uint8)
    split = Split(pixels.numpy(), (torch.arange(IMAGES) % CLASSES).numpy())
    data = ResidentSet(split, [0.5] * 3, [0.25] * 3, Views(8, 8, 1, True), torch.device("cpu"))
    shapes = (18, IMAGES, CLASSES), (18, IMAGES, 12)
    tables = [Table(*(torch.randn(s, generator=draw) for s in shapes)) for _ in range(2)]
    torch.manual_seed(0)
    model = models.create("resnet8", CLASSES)
    memory = ContrastiveMemory(IMAGES, 8, 16, 0.1, 0.5, data.labels, shared)
    kd = LogitDistillation(fused_logits(*tables, 0.7), 3.0)
    contrast = FusedContrast(model.feature_dim, *tables, 0.7, memory)
    return data, model, Objective(1.0, kd=(3.0, kd), crd=(0.8, contrast))


def train(data, model, objective, training=TRAINING):
    validation = data.batch(torch.arange(2), torch.arange(2)), data.labels[:2]
    run = Run(model, objective, data, validation, training, 0, RUNTIME, Kept(), "test")
    fit([run])
    return run.history


def worker(rank, port, folder):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    engine.start("cpu")
    results = {}
    for shared in (False, True):
        data, model, objective = experiment(shared)
        history = train(data, model, objective)
        results[shared] = history, model.state_dict(), objective.state_dict()
    fresh = models.create("resnet8", CLASSES)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = [engine.predict_logits(fresh, images[:n], 2) for n in (5, 2, 0)]
    logits.append(engine.predict(fresh, images, 2)[0])
    with pytest.raises(InputError) as caught:
        train(data, model, objective, dataclasses.replace(TRAINING, batch_size=127))
    nine = ResidentSet(
        Split(np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 2), [0.5] * 3, [0.5] * 3, data.views,
        torch.device("cpu"),
    )  # fmt: skip
    how = dataclasses.replace(TRAINING, batch_size=4)
    run = Run(model, objective, nine, (images, images), how, 0, RUNTIME, Kept(), "test")
    shares = [ids for ids, _ in run._batches(0)]
    torch.save((results, logits, (run.steps, shares), str(caught.value)), f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def halves(shared):
    """The losses of one process that accumulates gradients over two halves, and what it ends with."""
    data, model, objective = experiment(shared)
    term = objective.terms["crd"]
    memory, kd = term.memory, objective.terms["kd"]
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=5e-4, fused=True)
    values = []
    model.train()
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        order = torch.randperm(IMAGES, generator=draw)
        view_ids = data.views.sample(IMAGES, draw)
        negatives = memory.draw(order, draw)
        rows, total = [], 0.0
        optimizer.zero_grad()
        for ids, views, half in zip(order.chunk(2), view_ids.chunk(2), range(2)):
            output = model(data.batch(ids, views))
            student = F.normalize(term.student_head(output.features), dim=1)
            teacher = F.normalize(term.teacher_head(term.teacher.features(ids, views)), dim=1)
            clip = F.normalize(term.clip_head(term.clip.features(ids, views)), dim=1)
            fused = F.normalize(0.7 * teacher + 0.3 * clip, dim=1)
            chosen = negatives if shared else negatives.chunk(2)[half]
            rows.append((student, fused, ids, chosen, output, views))
        if step == 0:  # the normalisers are those of the whole batch
            firsts = []
            for student, fused, ids, chosen, *_ in rows:
                fresh = ContrastiveMemory(IMAGES, 8, 16, 0.1, 0.5, data.labels, shared)
                fresh.load_state_dict(memory.state_dict())
                fresh.contrast(student, fused, ids, chosen)
                firsts.append((fresh.student_normaliser, fresh.teacher_normaliser))
            for name, pair in zip(("student", "teacher"), zip(*firsts)):
                getattr(memory, f"{name}_normaliser").copy_(sum(pair) / 2)
        for student, fused, ids, chosen, output, views in rows:
            loss = F.cross_entropy(output.logits, data.labels[ids])
            loss = loss + 3 * losses.kd(output.logits, kd.teacher_logits(ids, views), 3.0)
            loss = (loss + 0.8 * memory.contrast(student, fused, ids, chosen)) / 2
            loss.backward()
            total += loss.item()
        optimizer.step()
        memory.update(
            order, *(torch.cat([row[side] for row in rows]).detach() for side in (0, 1))
        )
        values.append(total)
    return values, model, memory


@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_equal_one_over_the_same_halves(ranks, shared):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has
    values, model, memory = halves(shared)
    torch.set_num_threads(threads)
    for results, *_ in ranks:
        history, state, objective = results[shared]
        assert [row["loss"] for row in history] == pytest.approx(values, rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(state[name], parameter, rtol=1e-4, atol=1e-5)
        for name, bank in memory.state_dict().items():
            found = objective[f"terms.crd.memory.{name}"]
            torch.testing.assert_close(found, bank, rtol=1e-4, atol=1e-5)


def test_both_processes_hold_the_same_banks_and_weights(ranks):
    for shared in (False, True):
        (_, first, one), (_, second, other) = (results[shared] for results, *_ in ranks)
        assert all(torch.equal(one[name], other[name]) for name in one)
        trained = [name for name in first if "running" not in name]
        assert all(torch.equal(first[name], second[name]) for name in trained)


def test_the_one_that_writes_is_the_one_that_validates(ranks):
    (first, *_), (second, *_) = ranks
    assert "validation_accuracy" in first[False][0][-1]
    assert not any("validation_accuracy" in row for row in second[False][0])


def test_logits_of_shared_batches_come_whole(ranks):
    for _, (five, two, none, alone), *_ in ranks:
        assert torch.equal(five, alone) and torch.equal(two, alone[:2])
        assert none.shape == (0, CLASSES)


def test_a_batch_that_does_not_divide_is_refused(ranks):
    for *_, said in ranks:
        assert said == (
            "test: batches of 127 do not divide among 2 processes: choose another batch_size"
        )


def test_a_last_batch_that_leaves_a_process_without_an_image_is_no_step(ranks):
    (steps, first), (others, second) = (found for *_, found, _ in ranks)
    assert steps == others == 2
    assert [len(ids) for ids in first] == [len(ids) for ids in second] == [2, 2]
    assert len(torch.cat(first + second).unique()) == 8  # of nine, none twice


def test_on_its_own_a_process_is_all():
    rows = torch.ones(2, 3)
    assert (distributed.processes(), distributed.rank()) == (1, 0)
    assert distributed.gather(rows) is rows
    assert distributed.total(rows) is rows and torch.equal(distributed.mean(rows), torch.ones(2, 3))
    distributed.wait()


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 3 of this machine finds only 2 CUDA devices"):
        distributed.start(torch.device("cuda"))
