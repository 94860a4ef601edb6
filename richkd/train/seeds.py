"""Train one classifier a seed and keep all there is to keep of it."""

from __future__ import annotations

import shutil
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

# `{"seed0": {metric: value}}` and a row for each seed and epoch.
Results = Mapping[str, Mapping[str, float]]
Writer = Callable[[str, Results, pd.DataFrame], None]
MakeObjective = Callable[[nn.Module, "Teacher"], Objective]


class Job(NamedTuple):
    """What is trained: `training.arch`, once a seed, to `models/<name>`.

    The result follows from `params`, from the content of the files `inputs`, the calling script
    among them, and from the data: a run that was killed goes on only where all are the same. The
    params are recorded beside the weights.
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
    """The training and validation images, for the device."""

    def __init__(self, views: Views, runtime: Runtime):
        self.device = engine.pick_device(runtime.device, runtime.deterministic)
        self.runtime = runtime
        info = load_info("data/info.json")
        self.classes, self.num_classes = info.classes, len(info.classes)
        self.preprocessing = Preprocessing(info.mean, info.std, Center.of(views))
        train, validation = (
            load_split(f"data/{name}.safetensors", self.num_classes)
            for name in ("train", "validation")
        )
        self.train = imagesets.for_training(train, self.preprocessing, views, self.device)
        self.validation = (
            imagesets.for_inference(validation, self.preprocessing, self.device),
            torch.from_numpy(validation.labels).to(self.device),
        )


def train_seeds(
    job: Job,
    data: TrainingData,
    write: Writer,
    teacher: Teacher | None = None,
    make_objective: MakeObjective | None = None,
) -> None:
    """Train the job's classifier once a seed, as many seeds at once as `runtime` says.

    With a teacher, `make_objective(model, teacher)` makes the objective of one seed, and the
    teacher that it gets is the run's own reader; without one the objective is cross entropy.
    Writes `models/<name>/seed<n>.safetensors` and `.json`. `write(name, results, curves)` writes
    the metrics, since training knows nothing of evaluation. InputError where memory is too small.
    """
    key = resume.key([job.name, to_dict(job.params)], [*DATA, *job.inputs])
    first = distributed.rank() == 0
    folder = Path("models", job.name)
    if first:
        shutil.rmtree(folder, ignore_errors=True)  # no seeds of an earlier run stay
        kept.forget(folder)
    results: dict[str, dict[str, float]] = {}
    curves: list[pd.DataFrame] = []
    checkpoints: list[resume.Checkpoint] = []

    def train_group(seeds: Sequence[int]) -> None:
        """Train these seeds side by side; when it returns, their memory is free."""
        with engine.out_of_memory(LOWER):
            runs = [_prepare(job, data, seed, key, teacher, make_objective) for seed in seeds]
            fit(runs)
        for run in runs if first else ():
            results[f"seed{run.seed}"] = _keep(job, data, run)
            curves.append(pd.DataFrame(run.history).assign(seed=run.seed))
            checkpoints.append(run.checkpoint)

    at_once = data.runtime.seeds_at_once
    for start in range(0, len(job.seeds), at_once):
        train_group(job.seeds[start : start + at_once])
    distributed.wait()  # all have read the checkpoints
    if first:
        write(job.name, results, pd.concat(curves))
        kept.keep(folder, [checkpoint.path for checkpoint in checkpoints])
        print(f"{folder}: {len(job.seeds)} × {job.training.arch}")


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
        Sources(images, data.validation, own),
        Plan(job.training, data.runtime, seed, job.lower),
        resume.Checkpoint(f"{job.name}-seed{seed}", key),
        f"{job.name} seed {seed}",
    )


def _keep(job: Job, data: TrainingData, run: Run) -> dict[str, float]:
    """Save a trained classifier; its accuracies after the last epoch."""
    last = run.history[-1]
    names = ["train_accuracy", "validation_accuracy"]
    result = {name: last[name] for name in names if name in last}
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
