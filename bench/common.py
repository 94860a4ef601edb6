"""What every benchmark does: time cases in turn, print a table, write the table to a file.

A case is a function without arguments. The file also says what was measured, and on which machine.
"""

import ctypes
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from richkd.base.files import write_json
from richkd.base.revision import commit
from richkd.weights import processor, provenance

Case = Callable[[], object]
Rows = Mapping[str, Mapping[str, float]]
ROOT = Path(__file__).parents[1]
MIB = 2**20
PAGE_MIB = 2**-8  # one page of memory: peak_memory cannot see less


class Sizes(NamedTuple):
    """The sizes of a training step with CRD."""

    samples: int  # training images; a bank has a row for each
    batch_size: int
    classes: int
    negatives: int
    dim: int  # length of an embedding


CIFAR100 = Sizes(samples=50_000, batch_size=64, classes=100, negatives=16_384, dim=128)


def alternate(cases: Mapping[str, Case], repeats: int = 7) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times, after one call that does not count.

    The cases take turns, so that a busy minute of the machine falls on all of them alike.
    """
    for case in cases.values():
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            times[name].append(seconds(case))
    return times


def seconds(case: Case) -> float:
    """Seconds that one call of `case` takes."""
    synchronize()
    start = time.perf_counter()
    case()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait until a GPU has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, as columns of a table."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def speedup(plain: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as fast ours is: the ratio of the medians, and its range over the rounds."""
    rounds = [a / b for a, b in zip(plain, ours)]
    ratio = statistics.median(plain) / statistics.median(ours)
    return {"ratio": ratio, "ratio_min": min(rounds), "ratio_max": max(rounds)}


def peak_memory(case: Case) -> float:
    """MiB that a second call of `case` takes at its peak, beyond the memory in use before the call.

    On CUDA it is the memory that torch allocates. On a CPU it is the resident memory of the
    process, which needs Linux and glibc.
    """
    case()
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    # Freed blocks that the allocator keeps would hide a part of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    case()
    return max(_resident("VmHWM") - before, 0) / MIB


def _resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def report(name: str, rows: Rows, **facts: Any) -> None:
    """Print `rows`, a name and its numbers each, and write them to `<folder()>/<name>.json`.

    The file also has `facts`, the sizes and settings that were measured, and the machine, the date
    and the commit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = provenance(device) | {"processor": processor()}
    where["versions"] |= {name: version(name) for name in ("torchvision", "pillow")}
    facts |= where | {"date": date.today().isoformat(), "commit": _commit()}
    facts["load"] = os.getloadavg()[0]  # processes that wanted a CPU in the last minute
    print(_table(name, rows), end="\n\n")
    for key, value in facts.items():
        print(f"{key}: {value}")
    path = f"{folder()}/{name}.json"
    write_json(path, {"rows": rows, **facts})
    print(f"\n{path}")


def folder() -> str:
    """Where the files of this machine's benchmarks go; BENCH_FOLDER in the environment wins."""
    usual = "metrics/bench/gpu" if torch.cuda.is_available() else "metrics/bench"
    return os.environ.get("BENCH_FOLDER", usual)


def _table(name: str, rows: Rows) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[name, *columns]]
    for row, values in rows.items():
        lines.append([row, *(_number(values[c]) if c in values else "" for c in columns)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        first.ljust(widths[0]) + "".join(f"  {x:>{w}}" for x, w in zip(rest, widths[1:]))
        for first, *rest in lines
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    """The commit, with `-dirty` where the code has changes that are not committed."""
    found = commit(["bench", "richkd"], ROOT)
    return found.hash + "-dirty" * found.changed if found else "unknown"
