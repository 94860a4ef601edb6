"""Two processes train as one would."""

import dataclasses
import os
import socket
from unittest import mock

import numpy as np
import pytest
import torch
from torch import multiprocessing, nn

from richkd import engine, models
from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.losses import ContrastiveMemory
from richkd.params import Runtime, Training
from richkd.teachers.lookup import Table
from richkd.train.batchnorm import synchronised
from richkd.train.fit import Run, fit
from richkd.train.objective import Objective
from richkd.train.terms import FusedContrast, LogitDistillation, fused_logits

IMAGES, CLASSES = 32, 4
TRAINING = Training(
    arch="resnet8", epochs=50, batch_size=IMAGES, lr=0.01, schedule="step", milestones=(),
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


def ends(shared):
    """The history of an experiment and what it leaves, in 64 bits.

    In 32 bits rounding turns over a ReLU now and then, and from there runs part, by up to 4e-4.
    """
    data, model, objective = experiment(shared)
    data.mirrored = data.mirrored.double()
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        history = train(data, model.double(), objective.double())
    return history, model.state_dict(), objective.state_dict()


LAYERS = {
    "images": (nn.BatchNorm2d, (16, 6, 4, 4), torch.float32),
    "bf16": (nn.BatchNorm2d, (16, 6, 4, 4), torch.bfloat16),
    "rows": (nn.BatchNorm1d, (16, 6), torch.float32),
    "sequences": (nn.BatchNorm1d, (16, 6, 5), torch.float32),
}


def layer(name):
    """A BatchNorm, a batch of it far from zero, and the gradient of what it makes of that."""
    kind, shape, dtype = LAYERS[name]
    draw = torch.Generator().manual_seed(0)
    module = kind(shape[1])
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=draw)
    batch, upstream = (torch.randn(shape, generator=draw).to(dtype) for _ in range(2))
    return module, batch + 10, upstream


def layer_step(module, batch, upstream):
    """What is a row an image, the parameters' gradients, and the state after it."""
    batch.requires_grad_()
    output = module(batch)
    output.backward(upstream)
    rows = output.detach(), batch.grad, module.eval()(batch).detach()
    return list(rows), [x.grad for x in module.parameters()], module.state_dict()


def worker(rank, port, folder):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    engine.start("cpu")
    results = {shared: ends(shared) for shared in (False, True)}
    layers = {}
    for name in LAYERS:
        module, *whole = layer(name)
        own = (tensor.chunk(2)[rank] for tensor in whole)
        layers[name] = layer_step(synchronised(module, torch.device("cpu")), *own)
    fresh = models.create("resnet8", CLASSES)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = [engine.predict_logits(fresh, images[:n], 2) for n in (5, 2, 0)]
    logits.append(engine.predict(fresh, images, 2)[0])
    data, model, objective = experiment(shared=False)
    with pytest.raises(InputError) as caught:
        train(data, model, objective, dataclasses.replace(TRAINING, batch_size=31))
    nine = ResidentSet(
        Split(np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 2), [0.5] * 3, [0.5] * 3, data.views,
        torch.device("cpu"),
    )  # fmt: skip
    how = dataclasses.replace(TRAINING, batch_size=4)
    run = Run(model, objective, nine, (images, images), how, 0, RUNTIME, Kept(), "test")
    shares = [ids for ids, _ in run._batches(0)]
    found = results, logits, (run.steps, shares), str(caught.value), layers
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_equal_one(ranks, shared):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other here
    history, *states = ends(shared)
    torch.set_num_threads(threads)
    for results, *_ in ranks:
        found, *others = results[shared]
        losses = ([row["loss"] for row in rows] for rows in (found, history))
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
        torch.testing.assert_close(others, states)  # of BatchNorm the running statistics, too


@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_of_two_processes_is_that_of_the_whole_batch(ranks, name):
    whole = layer_step(*layer(name))
    halves, gradients, states = zip(*(layers[name] for *_, layers in ranks))
    fine, coarse = ({"rtol": bound, "atol": bound} for bound in (1e-5, 0.02))
    rows = [torch.cat(pair) for pair in zip(*halves)]
    torch.testing.assert_close(rows, whole[0], **(coarse if name == "bf16" else fine))
    torch.testing.assert_close([sum(pair) for pair in zip(*gradients)], whole[1], **fine)
    for state in states:
        torch.testing.assert_close(state, whole[2], **fine)


def test_on_cuda_batchnorm_is_torchs(monkeypatch):
    model = models.create("resnet8", CLASSES)
    state, device = model.state_dict(), torch.device("cuda")
    assert synchronised(model, device) is model and type(model.bn1) is nn.BatchNorm2d
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    held = list(model.parameters())
    assert synchronised(model, device) is model and type(model.bn1) is nn.SyncBatchNorm
    assert all(new is old for new, old in zip(model.parameters(), held, strict=True))
    assert list(model.state_dict()) == list(state)


def test_both_processes_hold_the_same_banks_and_weights(ranks):
    for shared in (False, True):
        (_, *first), (_, *second) = (results[shared] for results, *_ in ranks)
        for state, other in zip(first, second):
            assert all(torch.equal(state[name], other[name]) for name in state)


def test_the_one_that_writes_is_the_one_that_validates(ranks):
    (first, *_), (second, *_) = ranks
    assert "validation_accuracy" in first[False][0][-1]
    assert not any("validation_accuracy" in row for row in second[False][0])


def test_logits_of_shared_batches_come_whole(ranks):
    for _, (five, two, none, alone), *_ in ranks:
        assert torch.equal(five, alone) and torch.equal(two, alone[:2])
        assert none.shape == (0, CLASSES)


def test_a_batch_that_does_not_divide_is_refused(ranks):
    for *_, said, _ in ranks:
        assert said == (
            "test: batches of 31 do not divide among 2 processes: choose another batch_size"
        )


def test_a_last_batch_that_leaves_a_process_without_an_image_is_no_step(ranks):
    (steps, first), (others, second) = (found for *_, found, _, _ in ranks)
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


def test_restarts_with_the_addresses_of_those_before_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.start(torch.device("cpu"))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert distributed.start(torch.device("cpu")) == torch.device("cpu")
