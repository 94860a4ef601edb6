"""One epoch of every variant as preset cifar100 has it, and the 240 epochs that follow from it.

resnet8x4 under tables of a resnet32x4 in all 162 views, on 50,000 random images; then LF with one
thing changed, several students side by side, and the teacher itself under cross entropy. A repeat
is a `share` of an epoch. For a GPU: `python -m bench.epoch`, or bench/gpu.sh for all.
"""

import math

from bench.common import alternate, report, spread
from bench.protocol import Protocol, stepper
from richkd.engine import start

EPOCHS = 240
LF = {
    "eager": {"step": "eager"},
    "compile": {"step": "compile"},
    "bf16": {"precision": "bf16"},
    "compile, bf16": {"step": "compile", "precision": "bf16"},
    "shared negatives": {"shared": True},
}


def main(
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    teacher_dim: int = 256,
    samples: int = 50_000,
    negatives: int = 16_384,
    dim: int = 128,
    batch_size: int = 64,
    share: float = 0.2,
    beside: tuple[int, ...] = (2, 3, 5),
    changes: dict[str, dict[str, object]] = LF,
    repeats: int = 7,
) -> None:
    """`beside` are numbers of students trained side by side; their time is that of one of them."""
    device = start()
    protocol = Protocol(
        # Whole batches alone, so that nothing is compiled or captured inside a timed repeat.
        samples=samples, held=samples // batch_size * batch_size, negatives=negatives, dim=dim, batch_size=batch_size,
        teacher_dim=teacher_dim, device=device,
    )  # fmt: skip
    runs = {name: [protocol.run(student, name)] for name in ("ce", "kd", "L", "F", "LF")}
    for name, how in changes.items():
        runs[f"LF, {name}"] = [protocol.run(student, "LF", **how)]
    for count in beside:
        runs[f"LF, {count} side by side"] = [
            protocol.run(student, "LF", seed=seed) for seed in range(count)
        ]
    for precision in ("fp32", "bf16"):
        runs[f"teacher, {precision}"] = [protocol.run(teacher, "ce", precision=precision)]

    epoch = math.ceil(samples / batch_size)
    steps = max(1, round(share * epoch))
    times = alternate({name: stepper(each, steps) for name, each in runs.items()}, repeats)
    rows = {}
    for name, each in times.items():
        seconds = [t * epoch / steps / len(runs[name]) for t in each]
        rows[name] = {
            **spread("s_per_epoch", seconds),
            f"min_per_{EPOCHS}": EPOCHS * spread("s", seconds)["s"] / 60,
            "images_per_s": samples / spread("s", seconds)["s"],
        }
    report(
        "epoch",
        rows,
        goal=f"on an H200, {EPOCHS} epochs of LF in at most 5 minutes, of the teacher in at most 10",
        teacher=teacher, student=student, samples=samples, negatives=negatives, dim=dim,
        batch_size=batch_size, steps_a_repeat=steps, steps_an_epoch=epoch, repeats=repeats,
    )  # fmt: skip


if __name__ == "__main__":
    main()
