"""Training by SGD, several students side by side where asked.

A batch is two index vectors, image ids and view ids. A data set that lives on the device and teachers
that are tables (`richkd.teachers.lookup`) are looked up by them: no DataLoader, no teacher in the loop, no host
sync in a step, which on a GPU is captured once and then replayed as a CUDA graph. Images in files
come from threads that read ahead (`richkd.data.imagesets`), and the conventional teacher runs along.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from tqdm import tqdm

from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.data.resident import ResidentSet
from richkd.engine import accuracy, autocast, predict
from richkd.params import Runtime, Training
from richkd.train.batchnorm import synchronised

if TYPE_CHECKING:  # what counts for a stage that has none is not imported there
    from richkd.data.imagesets import Centers, FileSet, Pixels
    from richkd.teachers.lookup import Table

VALIDATIONS = 10  # a run; validating after every epoch would double the time of a small one
WARM_UP = 3  # steps of a length before its graph is captured: cuDNN picks kernels, buffers appear


class Run:
    """The training of one model, and of what its objective learns, to its last epoch.

    `objective(output, labels, ids, view_ids, draw)` returns the loss terms by name, `loss` first,
    as `richkd.train.objective.Objective` does; `tables` are those that it looks up. `history` has a row
    an epoch: the mean of each loss term, the training accuracy and, ten times a run, the accuracy
    on `validation` (normalised images, labels) if it holds any.

    What is random in an epoch follows from the seed and the epoch's number alone, so a run that
    goes on from its checkpoint ends, on a CPU, bit for bit where the unbroken one does. The model
    is left as the last epoch leaves it.

    Of several processes (`richkd.base.distributed`) each trains on its share of every batch, a last
    batch cut to a multiple of their number. Gradients, BatchNorm's statistics and CRD's banks are
    those of the whole batch, so but for that cut and rounding the number changes nothing, and the
    learning rate stays as it is. `richkd.train.batchnorm` changes the model's layers for it.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: nn.Module,
        data: ResidentSet | FileSet,
        validation: tuple[Tensor | Pixels | Centers, Tensor],
        training: Training,
        seed: int,
        runtime: Runtime,
        checkpoint: Checkpoint,
        title: str,
        tables: Sequence[Table] = (),
    ):
        """InputError where the batch does not divide among the processes, or graphs cannot be."""
        model = synchronised(model, data.device)
        self.model, self.objective, self.data, self.validation = model, objective, data, validation
        self.training, self.seed, self.title, self.tables = training, seed, title, tables
        self.precision, self.checkpoint = runtime.precision, checkpoint
        self.batch_size = min(training.batch_size, len(data))
        if self.batch_size % distributed.processes():
            raise InputError(
                f"{title}: batches of {self.batch_size} do not divide among "
                f"{distributed.processes()} processes: choose another batch_size"
            )
        full, rest = divmod(len(data), self.batch_size)
        self.steps = full + (rest >= distributed.processes())  # a share of none is no step

        cuda, alone = data.device.type == "cuda", distributed.processes() == 1
        resident = isinstance(data, ResidentSet)  # threads that decode there would meet the capture
        self.graphs = runtime.step == "graph"
        if runtime.step == "auto":
            self.graphs = cuda and alone and resident and not runtime.deterministic
        if self.graphs and not (cuda and alone and resident):
            raise InputError(
                "runtime.step is 'graph': needs a CUDA device, one process and images in arrays, use auto"
            )
        self.stream = torch.cuda.Stream(data.device) if cuda else None
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]] = {}
        self.seen: Counter[int] = Counter()
        self.draw = torch.Generator(data.device)

        self.forward = model
        if runtime.step == "compile":
            self.forward = torch.compile(model, mode="reduce-overhead" if cuda else "default")
        self.parameters = [*model.parameters(), *objective.parameters()]
        # A graph reads the rate from the device; as a number it would stay what it was at capture.
        rate = torch.tensor(training.lr, device=data.device) if self.graphs else training.lr
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
        scheduler = _schedule(self.optimizer, training, self.steps)
        self.parts = {
            "model": model, "objective": objective, "optimizer": self.optimizer, "scheduler": scheduler
        }  # fmt: skip
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.history: list[dict[str, float]] = []
        if state := checkpoint.load(data.device):
            self.history = state.pop("history")
            for name, part in self.parts.items():
                part.load_state_dict(state[name])

    def train(self) -> Iterator[None]:
        """Comes back after each step, which the device may still be at."""
        self.model.train()
        if self.stream:  # the current one, while others made what is here
            self.stream.wait_stream(torch.cuda.default_stream(self.data.device))
        first, epochs = len(self.history), self.training.epochs
        progress = tqdm(
            desc=self.title, total=epochs * self.steps, initial=first * self.steps, unit="step"
        )
        for epoch in range(first, epochs):
            batches = self._batches(epoch)
            for source in (self.data, *self.tables):
                source.start(batches)
            for ids, view_ids in batches:
                for source in (self.data, *self.tables):
                    source.advance()
                self._launch(ids, view_ids)
                self.parts["scheduler"].step()
                progress.update()
                yield
            self._finish(epoch, sum(len(ids) for ids, _ in batches), progress)
        progress.close()

    def _batches(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Image ids and view ids of every batch of an epoch, this process's share of them."""
        self.draw.manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=self.draw, device=self.data.device)
        view_ids = self.data.views.sample(len(order), self.draw)
        rank, processes = distributed.rank(), distributed.processes()
        batches = []
        for batch in zip(order.split(self.batch_size), view_ids.split(self.batch_size)):
            share = len(batch[0]) // processes
            if share:
                batches.append(tuple(part[rank * share :][:share] for part in batch))
        return batches

    def _step(self, ids: Tensor, view_ids: Tensor) -> None:
        labels = self.data.labels[ids]
        with autocast(self.data.device, self.precision):
            output = self.forward(self.data.batch(ids, view_ids))
        terms = self.objective(output, labels, ids, view_ids, self.draw)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        distributed.average([x.grad for x in self.parameters if x.grad is not None])
        self.optimizer.step()
        hits = (output.logits.argmax(1) == labels).float().mean()
        values = torch.stack([*terms.values(), hits]).detach() * len(ids)
        if self.sums is None:
            self.names, self.sums = [*terms, "train_accuracy"], torch.zeros_like(values)
        self.sums += values

    def _launch(self, ids: Tensor, view_ids: Tensor) -> None:
        """A step, as it is or as the graph of its length."""
        length = len(ids)
        self.seen[length] += 1
        if not self.graphs or self.seen[length] <= WARM_UP:
            self._step(ids, view_ids)
            return
        if length not in self.captured:
            inputs, graph = (ids.clone(), view_ids.clone()), torch.cuda.CUDAGraph()
            graph.register_generator_state(self.draw)
            # A workspace of cuBLAS that others may free, as torch.compile does, must not be its own.
            torch._C._cuda_clearCublasWorkspaces()
            # Threads that gather rows into pinned memory meanwhile are no part of it.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._step(*inputs)
            torch._C._cuda_clearCublasWorkspaces()
            self.captured[length] = graph, inputs
        graph, inputs = self.captured[length]
        for held, new in zip(inputs, (ids, view_ids)):
            held.copy_(new)
        graph.replay()

    def _finish(self, epoch: int, images: int, progress: tqdm) -> None:
        """Write the epoch's row and save what it left."""
        means = (distributed.total(self.sums) / (images * distributed.processes())).tolist()
        self.sums.zero_()
        self.history.append({"epoch": epoch + 1, **dict(zip(self.names, means))})
        row, epochs = self.history[-1], self.training.epochs
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"{self.title}: the loss is {row['loss']} in epoch {epoch + 1}: lower lr"
            )
        if distributed.rank() > 0:
            return
        due = (epoch + 1) % max(1, epochs // VALIDATIONS) == 0 or epoch + 1 == epochs
        images, labels = self.validation
        if due and len(labels):
            logits, _ = predict(self.model, images, 100, self.precision)
            row["validation_accuracy"] = accuracy(logits, labels)
            progress.set_postfix(validation_accuracy=f"{row['validation_accuracy']:.3f}")
        states = {name: part.state_dict() for name, part in self.parts.items()}
        self.checkpoint.save(history=self.history, **states)


def fit(runs: Sequence[Run]) -> None:
    """Train all to their ends, a step of each in turn; on a GPU each has a stream of its own.

    Where a small student leaves a GPU idle, several take little longer than one. Raises InputError
    for a loss that is not finite.
    """
    ahead = [(run, run.train()) for run in runs]
    while ahead:
        for turn in list(ahead):
            run, steps = turn
            with torch.cuda.stream(run.stream):  # None on a CPU, and without effect
                if next(steps, ahead) is ahead:  # no step is left
                    ahead.remove(turn)


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """Stepped once a batch; `steps` batches an epoch."""
    if training.schedule == "step":
        return MultiStepLR(optimizer, [epoch * steps for epoch in training.milestones])
    total = training.epochs * steps
    return OneCycleLR(optimizer, training.lr, total, cycle_momentum=False)
