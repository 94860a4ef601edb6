"""Train one classifier for each seed; save its weights, its record and its metrics."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from richkd import engine, models
from richkd.base import distributed, kept, resume
from richkd.base.files import sha256
from richkd.classifiers import Loaded, save_classifier
from richkd.data import imagesets
from richkd.data.dataset import load_info, load_split
from richkd.data.resident import ResidentSet
from richkd.data.views import Center, Preprocessing
from richkd.params import Runtime, Training, Views, to_dict
from richkd.train.fit import Plan, Run, Sources, fit
from richkd.train.objective import Objective

if TYPE_CHECKING:
    from richkd.teachers.teacher import Teacher

LOWER = (
    "batch_size, runtime.seeds_at_once or the num_negatives of crd, or set its negatives to shared"
)
DATA = ("data/train.safetensors", "data/validation.safetensors", "data/info.json")
TEST = "data/test.safetensors"
SHOWN = 1.0  # seconds between two writes of the curves while seeds train

# A row for each seed and epoch, and `{"seed0": {metric: value}}` once all seeds are trained.
Results = Mapping[str, Mapping[str, float]]
Writer = Callable[[str, pd.DataFrame, Results | None], None]
MakeObjective = Callable[[nn.Module, "Teacher"], Objective]


class Job(NamedTuple):
    """What is trained: `training.arch`, once for each seed, into `models/<name>`.

    The result follows from `params`, from the data, and from the content of the files `inputs`, the
    calling script among them. A killed run goes on only where all of these are the same. `params`
    are recorded beside the weights.
    """

    name: str
    training: Training
    seeds: Sequence[int]
    params: Any
    inputs: Sequence[Path | str]

    @property
    def lower(self) -> str:
        """The params to lower if the training diverges."""
        if self.name == "teacher":
            return "teacher.lr"
        terms = f", or the weights in distill.variants.{self.name}"
        return "student.lr" + (terms if self.name != "ce" else "")


class TrainingData:
    """The training, validation and test images, for the device."""

    def __init__(self, views: Views, runtime: Runtime):
        self.device = engine.pick_device(runtime.device, runtime.deterministic)
        # For products of matrices alone: torch uses TF32 in convolutions by default.
        torch.backends.cuda.matmul.allow_tf32 = runtime.tf32
        self.runtime = runtime
        info = load_info("data/info.json")
        self.classes, self.num_classes = info.classes, len(info.classes)
        self.preprocessing = Preprocessing(info.mean, info.std, Center.of(views))
        train = load_split(DATA[0], self.num_classes)
        self.train = imagesets.for_training(train, self.preprocessing, views, self.device)
        self.validation, self.test = self._labelled(DATA[1]), self._labelled(TEST)

    def _labelled(self, path: str) -> tuple[engine.Images, torch.Tensor]:
        """The images of a split and their labels, int64 (N,)."""
        split = load_split(path, self.num_classes)
        images = imagesets.for_inference(split, self.preprocessing, self.device)
        return images, torch.from_numpy(split.labels).to(self.device)


def train_seeds(
    job: Job,
    data: TrainingData,
    write: Writer,
    teacher: Teacher | None = None,
    make_objective: MakeObjective | None = None,
) -> None:
    """Train the job's classifier for each seed, `runtime.seeds_at_once` of them side by side.

    With a teacher, `make_objective(model, teacher)` makes the objective of one seed; its argument
    is the run's own reader of the teacher. Without a teacher the objective is cross entropy.
    Writes `models/<name>/seed<n>.safetensors` and `.json`. `write(name, curves, results)` writes
    the metrics, since this room does not import `richkd.evaluate`; while seeds train, results is
    None. InputError where memory is too small.
    """
    key = resume.key([job.name, to_dict(job.params)], [*DATA, TEST, *job.inputs])
    first = distributed.rank() == 0
    folder = Path("models", job.name)
    if first:
        shutil.rmtree(folder, ignore_errors=True)  # no seeds of an earlier run stay
        kept.forget(folder)
    results: dict[str, dict[str, float]] = {}
    checkpoints: list[resume.Checkpoint] = []
    curves = Curves(job.name, write)
    at_once = min(data.runtime.seeds_at_once, len(job.seeds))
    threads = threads_each(job, data, at_once, teacher)

    def train_group(seeds: Sequence[int]) -> None:
        """Train these seeds side by side; when it returns, their memory is free."""
        with engine.out_of_memory(LOWER):
            runs = [_prepare(job, data, seed, key, teacher, make_objective) for seed in seeds]
            for run in runs if first else ():
                curves.follow(run)
            fit(runs, threads)
        for run in runs if first else ():
            results[f"seed{run.seed}"] = _keep(job, data, run)
            checkpoints.append(run.checkpoint)

    for start in range(0, len(job.seeds), at_once):
        train_group(job.seeds[start : start + at_once])
    distributed.wait()  # all have read the checkpoints
    if first:
        write(job.name, curves.table(), results)
        kept.keep(folder, [checkpoint.path for checkpoint in checkpoints])
        print(f"{folder}: {len(job.seeds)} × {job.training.arch}")


class Curves:
    """The histories of all seeds so far, written at most once in `SHOWN` seconds of training.

    So `dvc plots` shows a run while it goes on.
    """

    def __init__(self, name: str, write: Writer):
        self.name, self.write = name, write
        self.rows: dict[int, list[dict[str, float]]] = {}  # by seed
        self.written, self.lock = time.monotonic(), threading.Lock()

    def follow(self, run: Run) -> None:
        """Write the curves anew after each epoch of this run too."""
        self.rows[run.seed] = list(run.history)  # empty unless the run goes on from a checkpoint
        run.after_epoch = lambda: self.show(run)

    def show(self, run: Run) -> None:
        """Note the run's rows; write those of all seeds, unless that was done a moment ago."""
        with self.lock:  # runs side by side may be in threads
            # A copy: a row is changed until its epoch is over.
            self.rows[run.seed] = list(run.history)
            if time.monotonic() - self.written >= SHOWN:
                self.write(self.name, self.table(), None)
                self.written = time.monotonic()

    def table(self) -> pd.DataFrame:
        """A row for each seed and epoch."""
        return pd.concat(
            [pd.DataFrame(rows).assign(seed=seed) for seed, rows in self.rows.items() if rows]
        )


def threads_each(
    job: Job, data: TrainingData, at_once: int, teacher: Teacher | None = None
) -> int | None:
    """How many threads each of the runs side by side has; None where the runs take turns.

    On a CPU, two operations of a small network at the same time, in one thread each, are faster
    than one operation after the other in two threads. Runs still take turns where the order of
    their steps matters: with several processes, which exchange numbers; with images in files, since
    runs share the reader of the validation images; for networks of other libraries, whose dropout
    draws from the one generator of the process; under a teacher with feature maps, since hooks on
    the one network of the teacher would see the maps of every thread.
    """
    resident = isinstance(data.train, ResidentSet)
    alone = data.device.type == "cpu" and distributed.processes() == 1
    shared = "/" in job.training.arch or (teacher is not None and teacher.has_maps)
    if at_once == 1 or not alone or not resident or shared:
        return None
    return max(1, torch.get_num_threads() // at_once)


def _prepare(
    job: Job,
    data: TrainingData,
    seed: int,
    key: str,
    teacher: Teacher | None,
    make_objective: MakeObjective | None,
) -> Run:
    """The run of one seed, at its start or where its checkpoint left it."""
    torch.manual_seed(seed)
    model = models.create(job.training.arch, data.num_classes, job.training.img_size)
    model.to(data.device).to(memory_format=torch.channels_last)
    images = data.train.reader()
    own = teacher and teacher.reader(images)
    objective = make_objective(model, own) if own and make_objective else Objective()
    return Run(
        model,
        objective.to(data.device),
        Sources(images, data.validation, own, data.test),
        Plan(job.training, data.runtime, seed, job.lower),
        resume.Checkpoint(f"{job.name}-seed{seed}", key),
        f"{job.name} seed {seed}",
    )


def _keep(job: Job, data: TrainingData, run: Run) -> dict[str, float]:
    """Save a trained classifier; its accuracies after the last epoch.

    `best_test_top1` is the best accuracy of the epochs in which the test images were looked at, for
    comparison with published figures of the best epoch. Nothing is chosen by it.
    """
    last = run.history[-1]
    names = ["train_accuracy", "validation_accuracy"]
    result = {name: last[name] for name in names if name in last}
    if "test_accuracy" in last:
        measured = [row for row in run.history if "test_accuracy" in row]
        best = max(measured, key=lambda row: row["test_accuracy"])  # the first of equal ones
        result["best_test_top1"], result["best_test_epoch"] = best["test_accuracy"], best["epoch"]
    save_classifier(
        f"models/{job.name}/seed{run.seed}",
        Loaded(run.model, data.preprocessing),
        data.device,
        arch=job.training.arch,
        num_classes=data.num_classes,
        classes=data.classes,
        image_size=data.validation[0].shape[-1],
        img_size=job.training.img_size,
        params=to_dict(job.params),
        seed=run.seed,
        saved_together=[f"seed{seed}" for seed in job.seeds],
        data={path: sha256(path) for path in DATA},
        metrics=result,
    )
    return result
