"""Trains on the stand-in for a GPU: `python standin_steps.py`, in an empty folder.

Run by `test_standin.py`. Numbers are garbage; what counts is the stand-in's log.
"""

import ctypes
from dataclasses import replace
from pathlib import Path

import nocudnn  # noqa: F401 - of the stand-in: what a GPU that computes nothing needs of torch
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from bench.common import CIFAR100
from bench.protocol import MEAN, RUNTIME, STD, NoCheckpoint, Protocol, stepper
from richkd import models
from richkd.base.resume import Checkpoint
from richkd.data.dataset import Manifest
from richkd.data.imagesets import FileSet
from richkd.data.views import Center, Preprocessing, RandomResizedCrop
from richkd.engine import pick_device
from richkd.params import Training
from richkd.teachers.fused import Fused
from richkd.teachers.table import Shards, Streamed
from richkd.train import fit as fitting
from richkd.train.fit import Plan, Run, Sources, fit
from richkd.train.terms import make_objective

EPOCH = 5  # steps; a graph is captured at the fourth
FILES = 32  # in four batches


class OneKernel(torch.autograd.Function):
    """A layer that takes a kernel forward and one for each gradient, as cuDNN's do."""

    @staticmethod
    def forward(ctx, x, weight, shape, gradients):
        ctx.save_for_backward(x, weight)
        ctx.gradients = gradients
        last = {"memory_format": torch.channels_last}
        return torch.empty(shape, device=x.device, dtype=x.dtype, **last).fill_(1)

    @staticmethod
    def backward(ctx, upstream):
        x, weight = ctx.saved_tensors
        grads = [torch.empty_like(x) if ctx.needs_input_grad[0] else None, torch.empty_like(weight)]
        for grad in [grad for grad in grads if grad is not None][: ctx.gradients]:
            grad.fill_(1)
        return *grads, None, None


def convolve(layer, x, weight, bias):
    side = (x.shape[2] + 2 * layer.padding[0] - weight.shape[2]) // layer.stride[0] + 1
    return OneKernel.apply(x, weight, (len(x), len(weight), side, side), 2)


def normalise(x, mean, var, weight, bias, *how, **more):
    return OneKernel.apply(x, weight, x.shape, 1)


def mark(text):
    ctypes.CDLL(None).nullgpu_mark(text.encode())


def count(protocol, name):
    """A captured step of each, whose number of kernels the log has."""
    for variant, negatives in (("L", "auto"), ("LF", "auto"), ("LF", "all")):
        mark(f"{name} {variant} {negatives}")
        run = protocol.run("resnet8x4", variant, negatives=negatives)
        steps = stepper([run], 4)
        steps()
        assert len(run.captured) == 1
        mark("replays")
        steps()
        mark("end")


def train(protocol, epochs):
    """Two students side by side, from their checkpoints if there are any; epochs done before."""
    runs = [protocol.run("resnet8x4", "LF", seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        run.checkpoint = Checkpoint(f"seed{seed}", "key")
        run._resume()
        run.training = replace(run.training, epochs=epochs)
    before = [len(run.history) for run in runs]
    fit(runs)
    assert [len(run.history) for run in runs] == [epochs, epochs]
    assert all(run.captured for run in runs)
    return before


def train_under_streamed_tables(protocol):
    """One captured student; each of its steps gets the rows of both tables from the host."""
    tables = []
    for table in (protocol.teacher, protocol.clip):
        views, images, _ = table.parts["logits"].shape
        parts = {name: [part.flatten(0, 1).cpu()] for name, part in table.parts.items()}
        tables.append(
            Streamed(Shards(parts, views, images, CIFAR100.classes), protocol.data.device)
        )
    teacher = Fused(protocol.fused.recipe, *tables).reader(protocol.data)
    protocol.fused, resident = teacher, protocol.fused
    run = protocol.run("resnet8x4", "LF")
    protocol.fused = resident
    steps = stepper([run], EPOCH)
    steps()
    assert len(run.captured) == 1
    mark("streamed")
    steps()
    mark("end")


def train_on_files(protocol):
    """Two LF students side by side on image files, which this stand-in's GPU does not decode."""
    device = protocol.data.device
    paths = [f"{number}.png" for number in range(FILES)]
    for path in paths:
        Image.new("RGB", (40, 36)).save(path)
    labels = torch.arange(FILES) % 2
    manifest = Manifest(
        root=".",
        paths=paths,
        labels=labels.numpy(),
        sizes=torch.tensor([[40, 36]] * FILES, dtype=torch.int32).numpy(),
        bytes=torch.tensor([Path(path).stat().st_size for path in paths]).numpy(),
        plain=torch.zeros(FILES, dtype=torch.bool).numpy(),
    )
    crops = RandomResizedCrop(32, (0.5, 1.0), (1.0, 1.0), flip=True)
    center = Preprocessing(MEAN, STD, Center(resize=36, size=32))
    data = FileSet(manifest, center, crops, device, threads=1)
    how = Training(
        arch="resnet8x4",
        epochs=2,
        batch_size=FILES // 4,
        lr=0.05,
        schedule="step",
        milestones=(),
        momentum=0.9,
        weight_decay=0.0,
    )
    # Tables of the centre view alone: the crops of files have no end.
    teacher = Fused(protocol.fused.recipe, protocol._table(1, 256), protocol.clip)
    terms, runs = protocol._terms("LF", "auto"), []
    for seed in (0, 1):
        student = models.create("resnet8x4", CIFAR100.classes).to(device)
        objective = make_objective(terms, student, teacher, labels).to(device)
        nothing = torch.zeros(0, 3, 32, 32, device=device), data.labels[:0]
        sources = Sources(data.reader(), nothing, teacher)
        runs.append(
            Run(student, objective, sources, Plan(how, RUNTIME, seed), NoCheckpoint(), "files")
        )
    mark("files")
    fit(runs)
    mark("end")


def main():
    device = pick_device()
    protocol = Protocol(CIFAR100, EPOCH * CIFAR100.batch_size, 256, device)
    nn.Conv2d._conv_forward = convolve
    fitting.Run._refuse = lambda run, wrong: None  # garbage is no divergence
    count(protocol, "torch")
    F.batch_norm, plain = normalise, F.batch_norm
    count(protocol, "cudnn")
    F.batch_norm = plain
    assert train(protocol, 2) == [0, 0]
    assert train(protocol, 4) == [2, 2]
    train_under_streamed_tables(protocol)
    train_on_files(protocol)
    print("done")


if __name__ == "__main__":
    main()
