"""Training by SGD, of one classifier or of several side by side.

A batch is two index vectors, image ids and view ids. Images in arrays live on the device, and
teachers are tables (`richkd.teachers.table`); a step looks both up by the two vectors. So a step
has no DataLoader, runs no teacher and does not wait for the device. On a GPU the step is captured
once and then replayed as a CUDA graph. Images in files come from threads that read ahead
(`richkd.data.imagesets`), and the conventional teacher runs along with the student.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from tqdm import tqdm

from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.data.resident import ResidentSet
from richkd.engine import Images, accuracy, autocast, divergence, predict
from richkd.models import ModelOutput, with_maps
from richkd.params import Runtime, Training
from richkd.train.batchnorm import count_apart, synchronised
from richkd.train.objective import Batch, Objective

if TYPE_CHECKING:  # a stage that trains without a teacher does not depend on the code of teachers
    from richkd.data.imagesets import FileSet
    from richkd.teachers.teacher import Teacher

VALIDATIONS = 10  # in a run; one after every epoch would double the time of a small run
# From 2.14 on torch finds a graph's generators itself, and warns if they are registered.
REGISTERS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
# Steps with a batch of one length before the graph of this length is captured. In these steps cuDNN
# chooses its kernels and buffers are made.
WARM_UP = 3


class Sources(NamedTuple):
    """What batches are made from; and images with their labels that the model is measured on."""

    images: ResidentSet | FileSet
    validation: tuple[Images, Tensor]
    teacher: Teacher | None = None
    test: tuple[Images, Tensor] | None = None  # nothing is chosen by it


class Plan(NamedTuple):
    """How one model is trained; `lower` names the params to lower if the training diverges."""

    training: Training
    runtime: Runtime
    seed: int
    lower: str = "lr"


class Run:
    """The training of one model, and of what its objective learns, to its last epoch.

    What is minimised is the weighted sum of the objective's terms. `history` has a row for each
    epoch: the means of that sum, `loss`, and of each term, the training accuracy and, in about ten
    epochs of a run, the accuracies on the validation and the test images if there are any.
    `after_epoch` is called when a row is complete.

    The checkpoint is written after the first epoch, after the last, and after each epoch between
    them for which `Checkpoint.due` says so. A killed run loses at most `resume.SECONDS` and an
    epoch.

    All randomness in an epoch follows from the seed and the epoch's number alone. So a run that
    goes on from its checkpoint ends, on a CPU, with the same bits as a run that was not killed. The
    model is left as the last epoch leaves it.

    A last batch of one image is left out, since BatchNorm needs two. With several processes
    (`richkd.base.distributed`) each trains on its share of every batch; an epoch's last batch is
    cut to a multiple of their number. A line says how many images an epoch leaves out. Gradients,
    BatchNorm's statistics and CRD's banks are those of the whole batch, so the number of processes
    changes only the last batch and the rounding, and the learning rate stays as it is.
    `richkd.train.batchnorm` changes the model's layers for this.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        sources: Sources,
        plan: Plan,
        checkpoint: Checkpoint,
        title: str,
    ):
        """InputError for a batch that does not divide, and for CUDA graphs that are impossible."""
        self.images, self.validation, self.teacher, self.test = sources
        self.after_epoch: Callable[[], None] = lambda: None
        self.training, self.runtime, self.seed, self.lower = plan
        self.device = self.images.device
        self.model = synchronised(model, self.device)
        self.counters = count_apart(self.model)
        self.objective, self.checkpoint, self.title = objective, checkpoint, title
        self.batch_size = min(self.training.batch_size, len(self.images))
        self.steps, self.rest = self._divide()

        cuda = self.device.type == "cuda"
        self.graphs = self._graphs_wanted()
        self.stream = torch.cuda.Stream(self.device) if cuda else None
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self.seen: Counter[int] = Counter()
        self.draw = torch.Generator(self.device)
        # torch's own generator, from which layers draw.
        self.layers_draw = torch.default_generator
        if cuda:
            self.layers_draw = torch.cuda.default_generators[torch.cuda.current_device()]

        self.forward: Callable[[Tensor], ModelOutput] = self.model
        if objective.needs_maps:
            self.forward = with_maps(self.model)
        self.losses: Callable[..., tuple[dict[str, Tensor], Tensor]] = self._losses
        if self.runtime.step == "compile":
            _check_compiler(self.device)
            # One compilation for each length of a batch; our own graph captures the compiled code.
            self.losses = torch.compile(self._losses, dynamic=False)
        self.parameters = [*self.model.parameters(), *objective.parameters()]
        self.optimizer = self._optimizer()
        # A graph reads the rate from the device: a number would stay as it was at the capture.
        self.rate = torch.zeros((), device=self.device) if self.graphs else None
        self.sent = 0.0  # the value of `rate`
        self.scheduler = _schedule(self.optimizer, self.training, self.steps)
        self.names: list[str] = []
        self.sums: list[Tensor] = []  # over the epoch's images, of what `names` says
        self.history: list[dict[str, float]] = []
        self._resume()

    def _divide(self) -> tuple[int, int]:
        """The steps of an epoch, and the images of its last batch if that is a smaller one, or 0.

        Says in a line how many images an epoch leaves out. InputError for a batch that does not
        divide among the processes.
        """
        images, processes = len(self.images), distributed.processes()
        if self.batch_size % processes:
            raise InputError(
                f"{self.title}: batches of {self.batch_size} do not divide among "
                f"{processes} processes: choose another batch_size"
            )
        full, left = divmod(images, self.batch_size)
        # A last batch with fewer images than processes is dropped: some process would get nothing.
        rest = left - left % processes if left > 1 else 0
        if rest < left:
            reason = f"does not divide among {processes} processes"
            tqdm.write(
                f"{self.title}: each epoch leaves out {left - rest} of {images} images, not always "
                f"the same: its last batch has {left} and "
                + ("BatchNorm needs two" if left == 1 else reason)
            )
        return full + (rest > 0), rest

    def _graphs_wanted(self) -> bool:
        """Whether steps are captured as CUDA graphs; InputError if asked for but impossible."""
        # Threads that decode files would work on the device in the middle of a capture.
        resident = isinstance(self.images, ResidentSet)
        possible = self.device.type == "cuda" and distributed.processes() == 1 and resident
        if self.runtime.step == "graph" and not possible:
            raise InputError(
                "runtime.step is 'graph': needs a CUDA device, one process and images in arrays, "
                "use auto"
            )
        if self.runtime.step in ("auto", "compile"):
            return possible and not self.runtime.deterministic
        return self.runtime.step == "graph"

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.parameters,
            lr=self.training.lr,
            momentum=self.training.momentum,
            weight_decay=self.training.weight_decay,
            fused=True,
        )

    def _state(self) -> dict[str, Any]:
        """The parts of the run that a checkpoint holds."""
        return {
            "model": self.model,
            "objective": self.objective,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def _resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        if state := self.checkpoint.load(self.device):
            self.history = state["history"]
            for name, part in self._state().items():
                part.load_state_dict(state[name])
            for group in self.optimizer.param_groups:
                group["lr"] = float(group["lr"])  # the scheduler works on the host

    def train(self) -> Iterator[None]:
        """Yields after each step; the device may still be working on it."""
        self.model.train()
        if self.stream:  # the model was made on the default stream: wait for it
            self.stream.wait_stream(torch.cuda.default_stream(self.device))
        first, epochs = len(self.history), self.training.epochs
        progress = tqdm(
            desc=self.title, total=epochs * self.steps, initial=first * self.steps, unit="step"
        )
        for epoch in range(first, epochs):
            batches = self._batches(epoch)
            views = [(batch.ids, batch.view_ids) for batch in batches]
            self.objective.begin_epoch(epoch + 1)
            self.images.begin_epoch(views)
            if self.teacher:
                self.teacher.begin_epoch(views)
            for number, batch in enumerate(batches):
                self.images.next_batch()
                if self.teacher:
                    self.teacher.next_batch()
                self._send_rate()
                self._seed_layers(epoch * self.steps + number)
                self._launch(batch)
                self.scheduler.step()
                progress.update()
                yield
            if self.counters:
                torch._foreach_add_(self.counters, len(batches))
            self._finish(epoch, sum(len(ids) for ids, _ in views), progress)
        progress.close()

    def _batches(self, epoch: int) -> list[Batch]:
        """Every batch of an epoch, this process's share of it."""
        self.draw.manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=self.draw, device=self.device)
        view_ids = self.images.views.sample(len(order), self.draw)
        whole = len(order) - len(order) % self.batch_size + self.rest
        order = order[:whole]
        # Labels of all at once: a lookup in each step would be a kernel more.
        parts = self.images.labels[order], order, view_ids[:whole]
        batches = []
        for batch in zip(*(part.split(self.batch_size) for part in parts)):
            share = len(batch[0]) // distributed.processes()
            labels, ids, view_ids = (x[distributed.rank() * share :][:share] for x in batch)
            batches.append(Batch(labels, ids, view_ids, self.draw))
        return batches

    def _losses(self, images: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the objective, and the logits."""
        with autocast(self.device, self.runtime.precision):
            output = self.forward(images)
        return self.objective(output, batch), output.logits

    def _step(self, batch: Batch) -> None:
        images, batch = self.images.batch(batch.ids, batch.view_ids), self.objective.draw(batch)
        # The first step sets CRD's normalisers, so its code differs: it is not compiled.
        losses = self.losses if self.sums else self._losses
        terms, logits = losses(images, batch)
        self.optimizer.zero_grad()
        # Backward from the terms, each with its weight: the sum itself would take five kernels.
        torch.autograd.backward([*terms.values()], [*self.objective.weights])
        distributed.average([x.grad for x in self.parameters if x.grad is not None])
        self._update()
        hits = torch.empty(len(images), device=self.device)  # float32 at once: a cast is a kernel
        hit_rate = torch.eq(logits.argmax(1), batch.labels, out=hits).mean()
        values = [*(term.detach() for term in terms.values()), hit_rate]
        if not self.sums:
            self.names, self.sums = [*terms, "train_accuracy"], [*map(torch.zeros_like, values)]
        torch._foreach_add_(self.sums, values, alpha=len(images))  # one kernel

    def _update(self) -> None:
        """The optimizer's step. Its rate is on the device for a graph, otherwise on the host."""
        (group,) = self.optimizer.param_groups
        rate = group["lr"]
        if self.rate is not None:
            group["lr"] = self.rate
        self.optimizer.step()
        group["lr"] = rate

    def _send_rate(self) -> None:
        """Send the rate to the device, if a graph reads it and it has changed."""
        rate = self.optimizer.param_groups[0]["lr"]
        if self.rate is not None and rate != self.sent:
            self.rate.fill_(rate)
            self.sent = rate

    def _seed_layers(self, step: int) -> None:
        """Let the random numbers of layers such as dropout follow from the seed and step alone.

        Runs side by side draw from one generator of torch, so it is seeded for every step.
        """
        text = f"{self.seed} {step} {distributed.rank()}"
        self.layers_draw.manual_seed(zlib.crc32(text.encode()))

    def _launch(self, batch: Batch) -> None:
        """Run a step, directly or by replaying the graph for a batch of this length."""
        length = len(batch.ids)
        self.seen[length] += 1
        if not self.graphs or self.seen[length] <= WARM_UP:
            self._step(batch)
            return
        if length not in self.captured:
            inputs = Batch._make([*(part.clone() for part in batch[:3]), *batch[3:]])
            self.captured[length] = self._capture(inputs), inputs
        graph, inputs = self.captured[length]
        torch._foreach_copy_(inputs[:3], batch[:3])  # labels, ids and view ids in one kernel
        graph.replay()

    def _capture(self, batch: Batch) -> torch.cuda.CUDAGraph:
        """The graph of a step on the tensors of this batch."""
        graph = torch.cuda.CUDAGraph()
        if REGISTERS:
            graph.register_generator_state(self.draw)
        # Other code, such as torch.compile, may free cuBLAS's workspace: the graph gets its own.
        torch._C._cuda_clearCublasWorkspaces()
        # thread_local: threads that gather rows into pinned memory do not break the capture.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._step(batch)
        torch._C._cuda_clearCublasWorkspaces()
        return graph

    def _finish(self, epoch: int, seen: int, progress: tqdm) -> None:
        """Write the epoch's row and save the run; `seen` are this process's images of the epoch."""
        sums = distributed.total(torch.stack(self.sums))
        torch._foreach_zero_(self.sums)
        means = (sums / (seen * distributed.processes())).tolist()
        loss = self.objective.total(means[:-1])
        row = {"epoch": epoch + 1, "loss": loss, **dict(zip(self.names, means))}
        self.history.append(row)
        epochs = self.training.epochs
        self._refuse(divergence(self.model, row["loss"]))
        if distributed.rank() > 0:
            return
        last = epoch + 1 == epochs
        if last or (epoch + 1) % max(1, epochs // VALIDATIONS) == 0:
            row |= self._measure()
            if "validation_accuracy" in row:
                progress.set_postfix(validation_accuracy=f"{row['validation_accuracy']:.3f}")
        if last or self.checkpoint.due():
            states = {name: part.state_dict() for name, part in self._state().items()}
            self.checkpoint.save(history=self.history, **states)
        self.after_epoch()

    def _measure(self) -> dict[str, float]:
        """The accuracies on the validation and the test images, where there are any."""
        images, labels = self.validation
        # Finite weights can be so large that the logits are not finite.
        probed = images if len(labels) else _any_image(images)
        logits, _ = predict(self.model, probed, 100, self.runtime.precision)
        self._refuse(None if logits.isfinite().all() else "the logits are not finite")
        found = {"validation_accuracy": accuracy(logits, labels)} if len(labels) else {}
        if self.test:
            images, labels = self.test
            logits, _ = predict(self.model, images, 100, self.runtime.precision)
            found["test_accuracy"] = accuracy(logits, labels)
        return found

    def _refuse(self, wrong: str | None) -> None:
        """InputError that names the last epoch of the history, if `wrong` says what is wrong."""
        if wrong:
            raise InputError(
                f"{self.title}: diverged in epoch {len(self.history)}, {wrong}: lower {self.lower}"
            )


def fit(runs: Sequence[Run], threads: int | None = None) -> None:
    """Train all runs to their ends, a step of each in turn; on a GPU each has its own stream.

    Where a small student leaves a GPU idle, several take little longer than one. With `threads`, on
    a CPU, the runs do not take turns: each has a Python thread of its own, and torch's operations
    in it use `threads` threads. Raises InputError where a run diverges.
    """
    if threads:
        _fit_in_threads(runs, threads)
        return
    ahead = [(run, run.train()) for run in runs]
    while ahead:
        for turn in list(ahead):
            run, steps = turn
            with torch.cuda.stream(run.stream):  # None on a CPU, and without effect
                if next(steps, ahead) is ahead:  # no step is left
                    ahead.remove(turn)


def _fit_in_threads(runs: Sequence[Run], threads: int) -> None:
    """`fit` with a thread of Python for each run. The first error ends all of them."""
    failed = threading.Event()

    def train(run: Run) -> None:
        torch.set_num_threads(threads)  # for this thread; MKL's is global, hence `before`
        try:
            for _ in run.train():
                if failed.is_set():
                    return
        except BaseException:
            failed.set()
            raise

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(train, runs))
    finally:
        torch.set_num_threads(before)


def _any_image(like: Images) -> Tensor:
    """One image with a value of the usual range in each pixel, (1, 3, H, W)."""
    shape = like.shape[1:]
    return torch.linspace(-2, 2, math.prod(shape), device=like.device).view(1, *shape)


def _check_compiler(device: torch.device) -> None:
    """InputError where torch.compile has no compiler for the device."""
    if device.type == "cuda":
        needed, there = "Triton and a C compiler", importlib.util.find_spec("triton") is not None
        names = [os.environ.get("CC", "cc"), "gcc", "clang"]
    else:
        needed, there = "a C++ compiler", True
        names = [os.environ.get("CXX", "g++"), "clang++"]
    if not there or not any(map(shutil.which, names)):
        raise InputError(f"runtime.step is 'compile': needs {needed}, use auto")


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """Stepped once a batch; `steps` batches an epoch."""
    if training.schedule == "step":
        return MultiStepLR(optimizer, [epoch * steps for epoch in training.milestones])
    total = training.epochs * steps
    return OneCycleLR(optimizer, training.lr, total, cycle_momentum=False)
