"""Make the table of a teacher that `richkd.teachers.lookup` describes; a killed run goes on where it stopped."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.files import read_json, write_json
from richkd.base.resume import FOLDER
from richkd.data.resident import ResidentSet
from richkd.engine import out_of_memory, predict

if TYPE_CHECKING:  # torchvision takes a second
    from richkd.data.imagesets import Centers, FileSet, Pixels

SHARD_BYTES = 256_000_000
HEADER = 128  # bytes, of a .npy of two dimensions
SAVE_EVERY = 5.0  # seconds; flushing takes a tenth of one


class _Part:
    """The shards of logits, features or classes while they are filled.

    Rows are written, neither mapped nor read, so that machines which share a file system may share
    the work: what they have cached of a page of it would overwrite each other's rows.
    """

    def __init__(self, folder: Path, name: str, rows: int, width: int, dtype: type):
        self.dtype, self.width, self.row = dtype, width, width * np.dtype(dtype).itemsize
        most = max(1, (SHARD_BYTES - HEADER) // self.row)
        self.lengths = [min(most, rows - start) for start in range(0, rows, most)]
        self.paths = [folder / f"{name}-{i:03}.npy" for i in range(len(self.lengths))]
        self.files: list[int] = []

    def allocate(self) -> None:
        """Write the headers, and take all the space."""
        for path, length in zip(self.paths, self.lengths):
            offset = np.lib.format.open_memmap(path, "w+", self.dtype, (length, self.width)).offset
            assert offset == HEADER
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def open(self) -> None:
        self.files = [os.open(path, os.O_WRONLY) for path in self.paths]

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put them from row `start` on, over the ends of shards."""
        while len(rows):
            shard, within = divmod(start, self.lengths[0])
            part = rows[: self.lengths[shard] - within]
            written = os.pwrite(self.files[shard], part.tobytes(), HEADER + within * self.row)
            if written < part.nbytes:  # a full disk, where space could not be taken before
                raise InputError(f"{self.paths[shard]} could not be written")
            start, rows = start + len(part), rows[len(part) :]

    def flush(self) -> None:
        for file in self.files:
            os.fsync(file)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def _check_disk(folder: Path, parts: dict[str, _Part]) -> None:
    """InputError where the parts and the copy that DVC makes of them do not fit there."""
    size = sum(sum(part.lengths) * part.row for part in parts.values())
    free = shutil.disk_usage(folder).free
    sizes = ", ".join(f"{name} {sum(x.lengths)} × {x.width}" for name, x in parts.items())
    tqdm.write(
        f"{sizes} in 16 bits: {size / 1e6:,.1f} MB, and as much in DVC's cache; "
        f"{free / 1e6:,.0f} MB of disk are free"
    )
    if 2 * size > free:
        raise InputError(
            f"a cache of {size / 1e6:,.1f} MB, and as much in DVC's, do not fit on the disk of "
            f"{folder.resolve()}, where {free / 1e6:,.1f} MB are free: free some, hold the centre "
            "view alone (cache.teacher, cache.clip), or set cache.top_k"
        )


def _rows(
    logits: Tensor, features: Tensor, top_k: int | None
) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """What the tables hold of a batch, on its way to the CPU; there once the event has passed."""
    logits = logits - logits.amax(1, keepdim=True)
    rows = {"logits": logits, "features": features}
    if top_k:
        values, classes = logits.topk(top_k, dim=1)
        rest = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
        rest = rest - math.log(logits.shape[1] - top_k)
        rows |= {
            "logits": torch.cat([values, rest], 1),
            "classes": classes.to(_index(logits.shape[1])),
        }
    sent = {
        name: (x.half() if x.is_floating_point() else x).to("cpu", non_blocking=True)
        for name, x in rows.items()
    }
    event = None
    if logits.is_cuda:
        event = torch.cuda.Event()
        event.record()
    return sent, event


def _index(num_classes: int) -> torch.dtype:
    return torch.int16 if num_classes <= 2**15 else torch.int32


def build(
    folder: Path | str,
    model: nn.Module,
    data: ResidentSet | FileSet,
    view_ids: Sequence[int],
    validation: Tensor | Pixels | Centers,
    batch_size: int,
    precision: str,
    made_from: dict[str, Any],
    key: str,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `model` on the views of every image; goes on where a killed run of this `key` stopped.

    `validation` is normalised images (M, 3, H, W), as `predict` takes them; `made_from` comes from
    `cache.identity`. Several processes share the batches and write the same bytes as one. Returns the
    logits (M, C) and features (M, D) of the validation images. InputError where disk or memory are
    too small or there are no more than `top_k` classes, before the work starts where that can be told.
    """
    work = FOLDER / f"cache-{Path(folder).name}"
    progress_file, done_file = work / "progress.json", work / "done"
    first = distributed.rank() == 0
    starts = range(0, len(data), batch_size)
    batches = [(view, start) for view in range(len(view_ids)) for start in starts]
    logits, features = (x.shape[1] for x in predict(model, validation[:0], batch_size, precision))
    if top_k and top_k >= logits:
        raise InputError(f"cache.top_k is {top_k}: must be below the number of classes, {logits}")
    widths = {"logits": (logits, np.float16), "features": (features, np.float16)}
    if top_k:
        index = np.int16 if _index(logits) == torch.int16 else np.int32
        widths |= {"logits": (top_k + 1, np.float16), "classes": (top_k, index)}
    rows_in_all = len(view_ids) * len(data)
    parts = {name: _Part(work, name, rows_in_all, *x) for name, x in widths.items()}
    if not first:
        pass  # the first decides and prepares
    elif progress_file.exists() and read_json(progress_file)["key"] == key:
        tqdm.write(f"going on from {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _check_disk(work, parts)
        for part in parts.values():
            part.allocate()
        done_file.write_bytes(bytes(len(batches)))  # a byte a batch
        write_json(progress_file, {"key": key})
    distributed.wait()
    for part in parts.values():
        part.open()
    done = os.open(done_file, os.O_WRONLY)
    before = np.frombuffer(done_file.read_bytes(), bool)
    numbers = np.flatnonzero(~before)[distributed.rank() :: distributed.processes()]
    distributed.wait()  # before anyone marks one as done

    bar = tqdm(total=len(batches), initial=int(before.sum()), desc=str(folder), unit="image",
               unit_scale=batch_size)  # fmt: skip
    finished: list[int] = []
    saved = time.monotonic()

    def save() -> None:
        for part in parts.values():
            part.flush()
        for number in finished:
            os.pwrite(done, b"\1", number)
        os.fsync(done)
        finished.clear()

    def write(number: int, rows: dict[str, Tensor], event: torch.cuda.Event | None) -> None:
        view, start = batches[number]
        if event:
            event.synchronize()
        for name, part in rows.items():
            if not torch.isfinite(part).all():
                raise InputError(
                    f"{folder}: the {name} of images {start} to {start + len(part) - 1} are not finite, "
                    "or beyond 65,504, the largest number of the table's 16 bits: another teacher?"
                )
            parts[name].write(view * len(data) + start, part.numpy())
        finished.append(number)
        bar.update(distributed.processes())

    def inputs(number: int) -> tuple[Tensor, Tensor]:
        """Image ids and view ids of a batch."""
        view, start = batches[number]
        ids = torch.arange(start, min(start + batch_size, len(data)), device=data.device)
        return ids, torch.full_like(ids, view_ids[view])

    with out_of_memory("cache.batch_size"):
        pending: deque[tuple[Any, ...]] = deque()
        lag = int(data.device.type == "cuda")  # it is at the next batch while one is written
        ahead = [inputs(number) for number in numbers]
        if ahead:
            data.start(ahead)
        for number, batch in zip(numbers, ahead):
            data.advance()
            found = predict(model, data.batch(*batch), batch_size, precision)
            pending.append((number, *_rows(*found, top_k)))
            if len(pending) > lag:
                write(*pending.popleft())
            if time.monotonic() - saved >= SAVE_EVERY:
                save()
                saved = time.monotonic()
        for batch in pending:
            write(*batch)
        save()
        bar.close()
        for part in parts.values():
            part.close()
        os.close(done)
        distributed.wait()
        found = predict(model, validation, batch_size, precision)
    if first:
        np.save(work / "validation.npy", found[0].cpu().numpy())
        for path in (progress_file, done_file):
            path.unlink()
        shape = {"views": len(view_ids), "images": len(data), "classes": logits}
        write_json(work / "cache.json", {**made_from, "shape": shape})
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        work.rename(folder)
    distributed.wait()
    return found
