"""Two processes train as one would."""

import contextlib
import dataclasses
import io
import os
import socket
from unittest import mock

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import multiprocessing, nn
from toys import crd, kd, recipe

from richkd import engine, models
from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Preprocessing, Views
from richkd.params import Ce, Dist, Mlkd, Pkt, Rkd, Runtime, Sp, Training
from richkd.teachers.fused import Fused
from richkd.teachers.table import Table
from richkd.train.batchnorm import synchronised
from richkd.train.fit import Plan, Run, Sources, fit
from richkd.train.terms import make_objective

IMAGES, CLASSES = 32, 4
TRAINING = Training(
    arch="resnet8", epochs=50, batch_size=IMAGES, lr=0.01, schedule="step", milestones=(),
    momentum=0.9, weight_decay=5e-4,
)  # fmt: skip
RUNTIME = Runtime(
    device="cpu", precision="fp32", deterministic=False, step="auto", seeds_at_once=1, tf32=False
)
CPU = torch.device("cpu")


class NoCheckpoint:
    """Takes the place of a checkpoint, and writes nothing."""

    def load(self, device):
        return None

    def due(self):
        return True

    def save(self, **state):
        pass


def experiment(shared):
    """The data, a model, and an objective with KD and CRD: the same in every process.

    With `shared` the images of a batch share CRD's negatives, and other losses relate them, too.
    """
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 8, 8, 3), generator=draw, dtype=torch.uint8)
    split = Split(pixels.numpy(), (torch.arange(IMAGES) % CLASSES).numpy())
    data = ResidentSet(split, Preprocessing([0.5] * 3, [0.25] * 3), Views(8, 8, 1, True), CPU)
    shapes = {"logits": (18, IMAGES, CLASSES), "features": (18, IMAGES, 12)}
    teacher, clip = (
        Table({name: torch.randn(s, generator=draw) for name, s in shapes.items()}, CLASSES)
        for _ in range(2)
    )
    torch.manual_seed(0)
    model = models.create("resnet8", CLASSES)
    options = {"ce": Ce(), "kd": kd(), "crd": crd(negatives="shared" if shared else "per_sample")}
    if shared:  # losses that relate the images of a batch to each other
        options |= {
            "mlkd": Mlkd(weight=0.1, temperatures=(2.0,)),
            "dist": Dist(weight=0.1, beta=1.0, gamma=1.0, temperature=4.0),
            "rkd": Rkd(weight=0.1, distance_weight=1.0, angle_weight=2.0),
            "sp": Sp(weight=1.0),
            "pkt": Pkt(weight=10.0),
        }
    fused = Fused(recipe(), teacher, clip)
    return data, model, make_objective(options, model, fused, data.labels)


def prepare(data, model, objective, training=TRAINING):
    validation = data.batch(torch.arange(2), torch.arange(2)), data.labels[:2]
    sources, plan = Sources(data, validation), Plan(training, RUNTIME, 0)
    return Run(model, objective, sources, plan, NoCheckpoint(), "test")


def train(data, model, objective):
    run = prepare(data, model, objective)
    fit([run])
    return run.history


def ends(shared):
    """The history of an experiment and its final states, computed in 64 bits.

    In 32 bits rounding changes the sign before a ReLU now and then, after which two runs differ by
    up to 4e-4.
    """
    data, model, objective = experiment(shared)
    data.mirrored = data.mirrored.double()
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        history = train(data, model.double(), objective.double())
    return history, model.state_dict(), objective.state_dict()


LAYERS = {
    "images": (nn.BatchNorm2d, (16, 6, 4, 4), torch.float32),
    "bf16": (nn.BatchNorm2d, (16, 6, 4, 4), torch.bfloat16),
    "activated": (BatchNormAct2d, (16, 6, 4, 4), torch.float32),
    "rows": (nn.BatchNorm1d, (16, 6), torch.float32),
    "sequences": (nn.BatchNorm1d, (16, 6, 5), torch.float32),
}


def layer(name):
    """A BatchNorm, a batch far from zero, and a gradient of the layer's output."""
    kind, shape, dtype = LAYERS[name]
    draw = torch.Generator().manual_seed(0)
    module = kind(shape[1])
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=draw)
    batch, upstream = (torch.randn(shape, generator=draw).to(dtype) for _ in range(2))
    return module, batch + 10, upstream


def layer_step(module, batch, upstream):
    """Tensors with a row for each image, the parameters' gradients, and the state afterwards."""
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
    engine.pick_device("cpu")
    results = {shared: ends(shared) for shared in (False, True)}
    layers = {}
    for name in LAYERS:
        module, *whole = layer(name)
        own = (tensor.chunk(2)[rank] for tensor in whole)
        layers[name] = layer_step(synchronised(module, CPU), *own)
    torch.manual_seed(0)  # steps leave another state of the generator in each process
    fresh = models.create("resnet8", CLASSES)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = [engine.predict_logits(fresh, images[:n], 2) for n in (5, 2, 0)]
    logits.append(engine.predict(fresh, images, 2)[0])
    data, model, objective = experiment(shared=False)
    with pytest.raises(InputError) as caught:
        prepare(data, model, objective, dataclasses.replace(TRAINING, batch_size=31))
    split = Split(np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 2)
    nine = ResidentSet(split, data.preprocessing, data.views, CPU)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run = prepare(nine, model, objective, dataclasses.replace(TRAINING, batch_size=4))
    shares = [batch.ids for batch in run._batches(0)]
    with contextlib.redirect_stdout(printed):
        six = dataclasses.replace(TRAINING, batch_size=6)
        shares += [batch.ids for batch in prepare(nine, model, objective, six)._batches(0)]
    found = results, logits, (run.steps, shares, printed.getvalue()), str(caught.value), layers
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
    activated = nn.Sequential(BatchNormAct2d(3))
    act = activated[0].act
    changed = synchronised(activated, device)[0]
    assert isinstance(changed, nn.SyncBatchNorm) and changed.act is act


def test_both_processes_hold_the_same_banks_and_weights(ranks):
    for shared in (False, True):
        (_, *first), (_, *second) = (results[shared] for results, *_ in ranks)
        for state, other in zip(first, second):
            assert all(torch.equal(state[name], other[name]) for name in state)


def test_the_process_that_writes_is_the_one_that_validates(ranks):
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


def test_a_last_batch_with_fewer_images_than_processes_is_dropped(ranks):
    (steps, first, said), (others, second, _) = (found for *_, found, _, _ in ranks)
    assert steps == others == 2
    # Two batches of four of the nine images; then one of six and the last, of three, cut to two.
    assert [len(ids) for ids in first] == [len(ids) for ids in second] == [2, 2, 3, 1]
    for batches in (slice(2), slice(2, 4)):
        assert len(torch.cat(first[batches] + second[batches]).unique()) == 8  # none twice
    one, two = said.splitlines()
    assert one.endswith("its last batch has 1 and BatchNorm needs two")
    assert two.startswith("test: each epoch leaves out 1 of 9 images, not always the same: ")
    assert two.endswith("its last batch has 3 and does not divide among 2 processes")


def test_in_a_single_process_nothing_changes():
    rows = torch.ones(2, 3)
    assert (distributed.processes(), distributed.rank()) == (1, 0)
    assert distributed.gather(rows) is rows
    assert distributed.total(rows) is rows and torch.equal(distributed.mean(rows), torch.ones(2, 3))
    distributed.wait()


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 3 of this machine finds only 2 CUDA devices"):
        distributed.join(torch.device("cuda"))


TOGETHER = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"RANK": None},
            "WORLD_SIZE is set and RANK is not: start several processes with torchrun",
        ),
        ({"WORLD_SIZE": None}, "RANK is set and WORLD_SIZE is not: .* for a single one unset RANK"),
        ({"MASTER_ADDR": None}, "RANK is set and MASTER_ADDR is not: .* unset RANK and WORLD_SIZE"),
        ({"MASTER_PORT": None}, "RANK is set and MASTER_PORT is not"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9{20}': must be a number of at most five"),
        ({"RANK": ""}, "RANK is '': must be a number"),
        ({"RANK": "-1"}, "RANK is '-1': must be a number"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x': must be a number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x': must be a number"),
        ({"RANK": "1"}, "RANK is 1: must be below WORLD_SIZE, 1"),
    ],
)
def test_variables_that_torchrun_would_not_set_are_one_line(monkeypatch, changes, said):
    for name, value in (TOGETHER | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        distributed.join(torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def test_restarts_with_old_addresses_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.join(torch.device("cpu"))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert distributed.join(torch.device("cpu")) == torch.device("cpu")
