"""Train one classifier a seed and write all there is to keep of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from richkd import engine, models, weights
from richkd.base import distributed, resume
from richkd.base.files import replacing, sha256, write_json
from richkd.data import imagesets
from richkd.data.dataset import Info, load_info, load_split
from richkd.data.views import Center
from richkd.evaluate.seeds import summarize
from richkd.params import Runtime, Training, Views, to_dict
from richkd.train.fit import Run, fit

if TYPE_CHECKING:
    from richkd.teachers.lookup import Table

LOWER = "batch_size, runtime.seeds_at_once or crd.num_negatives, or set crd.negatives to shared"
DATA = ("data/train.safetensors", "data/validation.safetensors", "data/info.json")


class TrainingData:
    """The training and validation images, for the device."""

    def __init__(self, views: Views, runtime: Runtime):
        self.device = engine.start(runtime.device, runtime.deterministic)
        self.runtime = runtime
        self.info: Info = load_info("data/info.json")
        self.center = Center.of(views)
        train, validation = (
            load_split(f"data/{name}.safetensors") for name in ("train", "validation")
        )
        look = self.info.mean, self.info.std
        self.train = imagesets.for_training(train, *look, views, self.center, self.device)
        self.validation = (
            imagesets.for_inference(validation, *look, self.center, self.device),
            torch.from_numpy(validation.labels).to(self.device),
        )


def train_seeds(
    name: str,
    data: TrainingData,
    training: Training,
    seeds: Sequence[int],
    make_objective: Callable[..., nn.Module],
    params: Any,
    inputs: Sequence[Path | str],
    tables: Sequence[Table] = (),
) -> None:
    """Train `training.arch` once a seed under the objective that `make_objective(model, *tables)` gives.

    Writes `models/<name>/seed<n>.safetensors` and `.json`, `metrics/train/<name>.json` and the
    curves, `metrics/curves/<name>.csv`. `params` and the files `inputs`, the calling script among
    them, with the data are what the result follows from: a run killed before goes on only where
    they are the same.
    """
    recorded = to_dict(params)
    key = resume.key([name, recorded], [*DATA, *inputs])
    first = distributed.rank() == 0
    checkpoints, curves, results = [], [], {}
    if first:
        shutil.rmtree(
            f"models/{name}", ignore_errors=True
        )  # no seeds of an earlier run stay behind
    at_once = data.runtime.seeds_at_once
    for group in (seeds[i : i + at_once] for i in range(0, len(seeds), at_once)):
        runs = []
        with engine.out_of_memory(LOWER):
            for seed in group:
                torch.manual_seed(seed)
                model = models.create(training.arch, len(data.info.classes))
                model.to(data.device, memory_format=torch.channels_last)
                images = data.train.reader()
                readers = [table.reader(images) for table in tables]
                runs.append(
                    Run(
                        model,
                        make_objective(model, *readers).to(data.device),
                        images,
                        data.validation,
                        training,
                        seed,
                        data.runtime,
                        resume.Checkpoint(f"{name}-seed{seed}", key),
                        f"{name} seed {seed}",
                        readers,
                    )
                )
            fit(runs)
        for run in runs if first else ():
            checkpoints.append(run.checkpoint)
            last = run.history[-1]
            result = {
                key: last[key] for key in ("train_accuracy", "validation_accuracy") if key in last
            }
            results[f"seed{run.seed}"] = result
            curves.append(pd.DataFrame(run.history).assign(seed=run.seed))
            record = {
                "kind": "classifier",
                "arch": training.arch,
                "num_classes": len(data.info.classes),
                "mean": data.info.mean,
                "std": data.info.std,
                "center": data.center and data.center._asdict(),
                "params": recorded,
                "seed": run.seed,
                "data": {path: sha256(path) for path in DATA},
                "metrics": result,
                **weights.provenance(data.device),
            }
            weights.save(f"models/{name}/seed{run.seed}", run.model.state_dict(), record)
        runs = run = None  # free before the next group's memory is taken
    distributed.wait()  # all have read the checkpoints
    if first:
        write_curves(name, pd.concat(curves))
        write_json(f"metrics/train/{name}.json", summarize(results))
        for checkpoint in checkpoints:
            checkpoint.remove()
        print(f"models/{name}: {len(seeds)} × {training.arch}, metrics/train/{name}.json, curves")


def write_curves(name: str, curves: pd.DataFrame) -> None:
    """`metrics/curves/<name>.csv`, with the columns that plots need even where nothing fills them."""
    columns = dict.fromkeys([*curves, "epoch", "validation_accuracy", "seed"])
    with replacing(f"metrics/curves/{name}.csv") as part:
        curves.reindex(columns=list(columns)).to_csv(part, index=False)
