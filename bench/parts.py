"""Where the time of an LF step goes: kernels and time by part, and the kernels that take most.

A step as it is, not captured. On a GPU times are the kernels' own, on a CPU those of the operators
of torch. Backward passes run in a thread of their own, so their part is what no other part has.
For a GPU: `python -m bench.parts`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.common import CIFAR100, MIB, Sizes, report
from bench.protocol import Protocol, stepper
from richkd import models
from richkd.engine import pick_device
from richkd.train.fit import Run

VARIANTS = ("L", "LF")
SHOWN = 15  # kernels


def main(*, sizes: Sizes = CIFAR100, student: str = "resnet8x4", batches: int = 10) -> None:
    device = pick_device()
    teacher_dim = cast(int, models.create("resnet32x4", sizes.classes).feature_dim)
    protocol = Protocol(sizes, batches * sizes.batch_size, teacher_dim, device)
    rows: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        run = protocol.run(student, variant, step="eager")
        parts, kernels = profiled(run, device.type == "cuda")
        rows |= {f"{variant}: {part}": row for part, row in parts.items()}
        rows |= {f"{variant}, {name}": row for name, row in kernels.items()}
    report("parts", rows, student=student, **sizes._asdict())


def profiled(
    run: Run, cuda: bool
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """By part of a step, and by kernel: how many kernels, and microseconds."""
    step = stepper([run], 1)
    for _ in range(5):
        step()
    name_parts(run)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, acc_events=True) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    events = cast(list[FunctionEvent], profiler.events())
    every = [event for event in events if is_kernel(event, cuda)]
    parts = {
        event.name.removeprefix("part "): amount(below(event, cuda))
        for event in events
        if event.name.startswith("part ") and event.device_type == torch.autograd.DeviceType.CPU
    }
    whole = amount(every)
    named = {key: sum(part[key] for part in parts.values()) for key in whole}
    parts["backward and the rest"] = {key: whole[key] - named[key] for key in whole}
    parts["whole"] = whole
    if cuda:
        parts["whole"]["peak_mib"] = torch.cuda.max_memory_allocated() / MIB
    by_name: dict[str, list[FunctionEvent]] = {}
    for event in every:
        by_name.setdefault(event.name[:60], []).append(event)
    kernels = {name: amount(found) for name, found in by_name.items()}
    longest = Counter({name: row["us"] for name, row in kernels.items()}).most_common(SHOWN)
    return parts, {name: kernels[name] for name, _ in longest}


def name_parts(run: Run) -> None:
    """Let the profiler see the parts of the run's step."""

    def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with record_function(f"part {part}"):
                return function(*arguments)

        return call

    run.images.batch = named("input", run.images.batch)  # type: ignore[method-assign]
    run.forward = named("student", run.forward)
    for name, term in run.objective.terms.items():
        term.forward = named(name, term.forward)
    run.optimizer.step = named("SGD", run.optimizer.step)  # type: ignore[method-assign]


def is_kernel(event: FunctionEvent, cuda: bool) -> bool:
    """On a CPU an operator counts as a kernel, without those that it calls."""
    if cuda:
        return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    return event.name.startswith("aten::")


def below(event: FunctionEvent, cuda: bool) -> list[Any]:
    """The kernels that ran within an event."""
    found = event.kernels if cuda else [event] * is_kernel(event, cuda)
    return [*found, *(kernel for child in event.cpu_children for kernel in below(child, cuda))]


def amount(kernels: list[Any]) -> dict[str, float]:
    """How many, and how long together. A kernel has `duration` where an operator launched it."""
    spent = (
        x.duration if hasattr(x, "duration") else x.device_time or x.self_cpu_time_total
        for x in kernels
    )
    return {"kernels": len(kernels), "us": float(sum(spent))}


if __name__ == "__main__":
    main()
