"""Epochs of every variant as preset cifar100 has it, and the 240 epochs that follow from them.

resnet8x4 under tables of a resnet32x4 in all 162 views, on 50,000 random images; then LF with one
thing changed, several students side by side, and the teacher itself under cross entropy. An epoch
has its shorter last batch and its checkpoint. For a GPU: `python -m bench.epoch`, or bench/gpu.sh
for all benchmarks.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from bench.common import CIFAR100, MIB, Sizes, alternate, report, spread
from bench.protocol import NETWORKS, TERMS, Networks, Protocol, stepper
from richkd import models
from richkd.engine import pick_device
from richkd.train.fit import Run

EPOCHS = 240
Changes = Mapping[str, Mapping[str, Any]]
CHANGES: Changes = {
    "bf16": {"precision": "bf16"},
    "compile, bf16": {"step": "compile", "precision": "bf16"},
    "shared negatives": {"negatives": "shared"},
}


def main(
    *,
    sizes: Sizes = CIFAR100,
    networks: Networks = NETWORKS,
    beside: Sequence[int] = (3,),
    changes: Changes = CHANGES,
    repeats: int = 2,
) -> None:
    """`beside` are numbers of students trained side by side; their time is that of one of them."""
    device = pick_device()
    teacher_dim = cast(int, models.create(networks.teacher, sizes.classes).feature_dim)
    protocol = Protocol(sizes, sizes.samples, teacher_dim, device, checkpoints=True)
    memory = peak_memory_of(protocol, networks.student)
    runs = all_runs(protocol, networks, beside, changes)
    steps = runs["LF"][0].steps  # an epoch
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        times = alternate({name: stepper(each, steps) for name, each in runs.items()}, repeats)
    rows = {}
    for name, each in times.items():
        seconds = spread("s_per_epoch", [t / len(runs[name]) for t in each])
        rows[name] = {
            **seconds,
            f"min_per_{EPOCHS}": EPOCHS * seconds["s_per_epoch"] / 60,
            "images_per_s": sizes.samples / seconds["s_per_epoch"],
        }
    report(
        "epoch",
        rows,
        goal=f"{EPOCHS} epochs on an H200: LF in at most 5 minutes, the teacher in at most 10",
        **networks._asdict(),
        **sizes._asdict(),
        steps_an_epoch=steps,
        peak_mib_of_LF=memory,
        repeats=repeats,
    )


def peak_memory_of(protocol: Protocol, student: str) -> float:
    """MiB of the device that LF takes at its peak, images and tables among them; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    stepper([protocol.run(student, "LF")], 5)()
    return torch.cuda.max_memory_allocated() / MIB


def all_runs(
    protocol: Protocol, networks: Networks, beside: Sequence[int], changes: Changes
) -> dict[str, list[Run]]:
    """By the name of a row, the runs that are trained side by side."""
    student = networks.student
    runs = {variant: [protocol.run(student, variant)] for variant in TERMS}
    for name, change in changes.items():
        runs[f"LF, {name}"] = [protocol.run(student, "LF", **change)]
    for count in beside:
        runs[f"LF, {count} side by side"] = [
            protocol.run(student, "LF", seed=seed) for seed in range(count)
        ]
    for precision in ("fp32", "bf16"):
        runs[f"teacher, {precision}"] = [protocol.run(networks.teacher, "ce", precision=precision)]
    return runs


if __name__ == "__main__":
    main()
