"""What every benchmark does: time cases in turn, print a table, write it with what it ran on."""

import ctypes
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from richkd.base.files import write_json
from richkd.weights import provenance

Case = Callable[[], Any]
ROOT = Path(__file__).parents[1]
MIB = 2**20
PAGE_MIB = 2**-8  # the least that peak_memory can tell from nothing


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
    synchronize()
    start = time.perf_counter()
    case()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, smallest and largest, as columns of a table."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def speedup(plain: list[float], ours: list[float]) -> dict[str, float]:
    """How many times as fast ours is: the ratio of the medians, and the spread over the rounds."""
    rounds = [a / b for a, b in zip(plain, ours)]
    ratio = statistics.median(plain) / statistics.median(ours)
    return {"ratio": ratio, "ratio_min": min(rounds), "ratio_max": max(rounds)}


def peak_memory(case: Case) -> float:
    """MiB that a second call of `case` takes at its peak beyond what is held before it.

    What the process keeps resident on a CPU (Linux and glibc only), what torch allocates on CUDA.
    """
    case()
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    # Freed blocks that the allocator keeps would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    case()
    return max(_resident("VmHWM") - before, 0) / MIB


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def report(name: str, rows: Mapping[str, Mapping[str, float]], **facts: Any) -> None:
    """Print `rows`, a name and its numbers each, and write them to `metrics/bench/<name>.json`.

    On CUDA to `metrics/bench/gpu`. The file says too what was measured (`facts`) and on what, when and at which commit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = provenance(device) | {"processor": _processor()}
    where["versions"] |= {name: version(name) for name in ("torchvision", "pillow")}
    facts |= where | {"date": date.today().isoformat(), "commit": _commit()}
    print(_table(name, rows), end="\n\n")
    for key, value in facts.items():
        print(f"{key}: {value}")
    path = f"{folder()}/{name}.json"
    write_json(path, {"rows": rows, **facts})
    print(f"\n{path}")


def folder() -> str:
    return "metrics/bench/gpu" if torch.cuda.is_available() else "metrics/bench"


def _table(name: str, rows: Mapping[str, Mapping[str, float]]) -> str:
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


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*: (.*)", cpuinfo.read_text())
    return found[1] if found else "unknown"


def _commit() -> str:
    """With `-dirty` where code has changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "bench", "richkd")
        return (git("rev-parse", "HEAD") or "unknown") + "-dirty" * bool(changed)
    except OSError:
        return "unknown"
