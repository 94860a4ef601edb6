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
from richkd.base import distributed, resume
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
    "student.batch_size, runtime.seeds_at_once or a variant's crd.num_negatives, or set "
    "crd.negatives to shared"
)
DATA = ("data/train.safetensors", "data/validation.safetensors", "data/info.json")

# `{"seed0": {metric: value}}` and a row for each seed and epoch.
Results = Mapping[str, Mapping[str, float]]
Writer = Callable[[str, Results, pd.DataFrame], None]


class Job(NamedTuple):
    """What is trained: `training.arch`, once a seed, to `models/<name>`.

    `params` and the content of the files `inputs`, the calling script among them, are with the data
    what the result follows from: a run that was killed goes on only where they are the same. The
    params are recorded beside the weights.
    """

    name: str
    training: Training
    seeds: Sequence[int]
    params: Any
    inputs: Sequence[Path | str]


class TrainingData:
    """The training and validation images, for the device."""

    def __init__(self, views: Views, runtime: Runtime):
        self.device = engine.pick_device(runtime.device, runtime.deterministic)
        self.runtime = runtime
        info = load_info("data/info.json")
        self.num_classes = len(info.classes)
        self.preprocessing = Preprocessing(info.mean, info.std, Center.of(views))
        train, validation = (
            load_split(f"data/{name}.safetensors") for name in ("train", "validation")
        )
        self.train = imagesets.for_training(train, self.preprocessing, views, self.device)
        self.validation = (
            imagesets.for_inference(validation, self.preprocessing, self.device),
            torch.from_numpy(validation.labels).to(self.device),
        )


def train_seeds(
    job: Job,
    data: TrainingData,
    make_objective: Callable[[nn.Module, Teacher | None], Objective],
    write: Writer,
    teacher: Teacher | None = None,
) -> None:
    """Train the job's classifier once a seed, as many seeds at once as `runtime` says.

    `make_objective(model, teacher)` makes the objective of one seed; the teacher it gets is the
    run's own reader of `teacher`. Writes `models/<name>/seed<n>.safetensors` and `.json`, and calls
    `write(name, results, curves)` for the metrics. InputError where memory is too small.
    """
    key = resume.key([job.name, to_dict(job.params)], [*DATA, *job.inputs])
    first = distributed.rank() == 0
    checkpoints: list[resume.Checkpoint] = []
    results: dict[str, dict[str, float]] = {}
    curves: list[pd.DataFrame] = []
    if first:
        shutil.rmtree(f"models/{job.name}", ignore_errors=True)  # no seeds of an earlier run stay
    at_once = data.runtime.seeds_at_once
    for group in (job.seeds[i : i + at_once] for i in range(0, len(job.seeds), at_once)):
        with engine.out_of_memory(LOWER):
            runs = [_prepare(job, data, seed, key, make_objective, teacher) for seed in group]
            fit(runs)
        for run in runs if first else ():
            checkpoints.append(run.checkpoint)
            results[f"seed{run.seed}"] = _keep(job, data, run)
            curves.append(pd.DataFrame(run.history).assign(seed=run.seed))
        del runs  # free before the next group's memory is taken
    distributed.wait()  # all have read the checkpoints
    if first:
        write(job.name, results, pd.concat(curves))
        for checkpoint in checkpoints:
            checkpoint.remove()
        print(f"models/{job.name}: {len(job.seeds)} × {job.training.arch}")


def _prepare(
    job: Job,
    data: TrainingData,
    seed: int,
    key: str,
    make_objective: Callable[[nn.Module, Teacher | None], Objective],
    teacher: Teacher | None,
) -> Run:
    """The run of one seed, at its start or where its checkpoint left it."""
    torch.manual_seed(seed)
    model = models.create(job.training.arch, data.num_classes)
    model.to(data.device).to(memory_format=torch.channels_last)
    images = data.train.reader()
    own = teacher and teacher.reader(images)
    return Run(
        model,
        make_objective(model, own).to(data.device),
        Sources(images, data.validation, own),
        Plan(job.training, data.runtime, seed),
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
        params=to_dict(job.params),
        seed=run.seed,
        data={path: sha256(path) for path in DATA},
        metrics=result,
    )
    return result
