"""Makes the table of a teacher (`richkd.teachers.table`); a killed run goes on where it stopped."""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd.base import distributed
from richkd.base.errors import InputError
from richkd.base.files import sha256, write_array, write_json
from richkd.base.records import read_json
from richkd.base.resume import FOLDER
from richkd.data.imagesets import FileSet
from richkd.data.resident import ResidentSet
from richkd.engine import Images, out_of_memory, predict

SHARD_BYTES = 256_000_000
HEADER = 128  # bytes of the header of a .npy file of two dimensions
SAVE_EVERY = 5.0  # seconds; saving takes a tenth of a second


class Inputs(NamedTuple):
    """The images that a teacher is run on.

    data are the training images, and view_ids the views of them that the table holds: none for a
    teacher that runs along. validation are normalised images (M, 3, H, W).
    """

    data: ResidentSet | FileSet
    view_ids: Sequence[int]
    validation: Images


class Settings(NamedTuple):
    """How a teacher is run, and how many logits of a row the table keeps; top_k None keeps all."""

    batch_size: int
    precision: str
    top_k: int | None = None


def build(
    folder: Path | str,
    model: nn.Module,
    inputs: Inputs,
    settings: Settings,
    made_from: dict[str, Any],
    key: str,
) -> tuple[Tensor, Tensor]:
    """Run `model` on the views of every training image, and write the table to `folder`.

    Goes on where a killed run of the same `key` stopped. `made_from` is what `lookup.identity`
    returns. Several processes share the batches and write the same bytes as one. Returns the logits
    (M, C) and features (M, D) of the validation images.

    Raises InputError if top_k is not below the number of classes or the disk is too small, before
    the work starts; and if memory runs out or a value does not fit into 16 bits.
    """
    empty = predict(model, inputs.validation[:0], settings.batch_size, settings.precision)
    classes, feature_dim = (part.shape[1] for part in empty)
    widths = _widths(classes, feature_dim, settings.top_k)
    table = _Unfinished(Path(folder), inputs, settings.batch_size, widths)
    first = distributed.rank() == 0
    if first:
        table.begin_or_resume(key)
    distributed.wait()
    numbers = table.open()
    distributed.wait()  # every process has read which batches are done: now they may mark others
    with out_of_memory("cache.batch_size"):
        _fill(table, numbers, model, settings)
        distributed.wait()
        found = predict(model, inputs.validation, settings.batch_size, settings.precision)
    if first:
        table.finish(found[0], made_from)
    distributed.wait()
    return found


def _fill(
    table: "_Unfinished", numbers: Sequence[int], model: nn.Module, settings: Settings
) -> None:
    """Run the model on the batches `numbers`, and write what it returns to the table."""
    data = table.inputs.data
    lag = int(data.device.type == "cuda")  # a GPU works on a batch while the one before is written
    pending: deque[tuple[int, dict[str, Tensor], torch.cuda.Event | None]] = deque()
    batches = [table.batch(number) for number in numbers]
    if batches:
        data.begin_epoch(batches)
    saved = time.monotonic()
    for number, batch in zip(numbers, batches):
        data.next_batch()
        found = predict(model, data.batch(*batch), settings.batch_size, settings.precision)
        pending.append((number, *_rows(*found, settings.top_k)))
        if len(pending) > lag:
            table.write(*pending.popleft())
        if time.monotonic() - saved >= SAVE_EVERY:
            table.save()
            saved = time.monotonic()
    for last in pending:
        table.write(*last)
    table.close()


def _rows(
    logits: Tensor, features: Tensor, top_k: int | None
) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """The table's rows of a batch, by part, on their way to the CPU; complete after the event."""
    logits = logits - logits.amax(1, keepdim=True)
    rows = {"logits": logits, "features": features}
    if top_k:
        values, classes = logits.topk(top_k, dim=1)
        rest = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
        rest = rest - math.log(logits.shape[1] - top_k)
        rows["logits"] = torch.cat([values, rest], 1)
        rows["classes"] = classes.to(_class_dtype(logits.shape[1]))
    sent = {
        name: (x.half() if x.is_floating_point() else x).to("cpu", non_blocking=True)
        for name, x in rows.items()
    }
    event = None
    if logits.is_cuda:
        event = torch.cuda.Event()
        event.record()
    return sent, event


def _class_dtype(num_classes: int) -> torch.dtype:
    return torch.int16 if num_classes <= 2**15 else torch.int32


def _widths(
    num_classes: int, feature_dim: int, top_k: int | None
) -> dict[str, tuple[int, npt.DTypeLike]]:
    """The length of a row and its dtype, for each part of a table."""
    if not top_k:
        return {"logits": (num_classes, np.float16), "features": (feature_dim, np.float16)}
    if top_k >= num_classes:
        raise InputError(
            f"cache.top_k is {top_k}: must be below the number of classes, {num_classes}"
        )
    index = np.int16 if _class_dtype(num_classes) == torch.int16 else np.int32
    return {
        "logits": (top_k + 1, np.float16),
        "features": (feature_dim, np.float16),
        "classes": (top_k, index),
    }


class _Unfinished:
    """A table while it is made, in a folder of its own, from which it is moved to `folder` at last.

    Its rows are written in batches of one view. The file `done` has a byte for each batch: 1 if the
    rows are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Inputs,
        batch_size: int,
        widths: dict[str, tuple[int, npt.DTypeLike]],
    ):
        self.folder, self.inputs, self.batch_size = folder, inputs, batch_size
        self.work = FOLDER / f"cache-{folder.name}"
        self.key_file, self.done_file = self.work / "progress.json", self.work / "done"
        self.images, self.views = len(inputs.data), len(inputs.view_ids)
        starts = range(0, self.images, batch_size)
        # The position of the view in `view_ids`, and the first image.
        self.batches = [(view, start) for view in range(self.views) for start in starts]
        rows = self.views * self.images
        self.parts = {name: _Part(self.work, name, rows, *x) for name, x in widths.items()}
        self.written: list[int] = []  # batches that `save` has not marked as done yet

    def begin_or_resume(self, key: str) -> None:
        """Make the files, unless a killed run of this key has left them."""
        if self.key_file.exists() and read_json(self.key_file)["key"] == key:
            tqdm.write(f"going on from {self.work}")
            return
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        _check_disk(self.work, self.parts)
        for part in self.parts.values():
            part.allocate()
        self.done_file.write_bytes(bytes(len(self.batches)))
        write_json(self.key_file, {"key": key})

    def open(self) -> list[int]:
        """Open the files for writing; the numbers of the batches that this process has to do."""
        for part in self.parts.values():
            part.open()
        self.done = os.open(self.done_file, os.O_WRONLY)
        before = np.frombuffer(self.done_file.read_bytes(), bool)
        self.bar = tqdm(
            total=len(self.batches),
            initial=int(before.sum()),
            desc=str(self.folder),
            unit="image",
            unit_scale=self.batch_size,
        )
        left = np.flatnonzero(~before)[distributed.rank() :: distributed.processes()]
        return [int(number) for number in left]

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Image ids and view ids of a batch, on the device."""
        view, start = self.batches[number]
        stop = min(start + self.batch_size, self.images)
        ids = torch.arange(start, stop, device=self.inputs.data.device)
        return ids, torch.full_like(ids, self.inputs.view_ids[view])

    def write(self, number: int, rows: dict[str, Tensor], event: torch.cuda.Event | None) -> None:
        """Write the rows of a batch, by part, which are complete after the event."""
        view, start = self.batches[number]
        if event:
            event.synchronize()
        for name, part in rows.items():
            if not torch.isfinite(part).all():
                raise InputError(
                    f"{self.folder}: the {name} of images {start} to {start + len(part) - 1} are "
                    "not finite, or beyond 65,504, the largest number of the table's 16 bits: "
                    "another teacher?"
                )
            self.parts[name].write(view * self.images + start, part.numpy())
        self.written.append(number)
        self.bar.update(distributed.processes())

    def save(self) -> None:
        """Bring all rows to the disk; then mark their batches as done."""
        for part in self.parts.values():
            part.flush()
        for number in self.written:
            os.pwrite(self.done, b"\1", number)
        os.fsync(self.done)
        self.written.clear()

    def close(self) -> None:
        """Save, and close the files."""
        self.save()
        self.bar.close()
        for part in self.parts.values():
            part.close()
        os.close(self.done)

    def finish(self, validation_logits: Tensor, made_from: dict[str, Any]) -> None:
        """Add the files that describe the table, and move everything to its place."""
        write_array(self.work / "validation.npy", validation_logits.cpu().numpy())
        for path in (self.key_file, self.done_file):
            path.unlink()
        classes = validation_logits.shape[1]
        shape = {"views": self.views, "images": self.images, "classes": classes}
        # The fused teacher knows its tables by this file alone: it names what they hold, too.
        content = {path.name: sha256(path) for path in sorted(self.work.glob("*.npy"))}
        write_json(self.work / "cache.json", {**made_from, "shape": shape, "content": content})
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.work.rename(self.folder)


class _Part:
    """The files of logits, features or classes while they are filled.

    Rows are written with `pwrite` and neither mapped nor read, so that machines which share a file
    system can share the work: a mapped page in the memory of one machine would overwrite the rows
    of another.
    """

    def __init__(self, folder: Path, name: str, rows: int, width: int, dtype: npt.DTypeLike):
        self.dtype, self.width, self.row = dtype, width, width * np.dtype(dtype).itemsize
        most = max(1, (SHARD_BYTES - HEADER) // self.row)
        self.lengths = [min(most, rows - start) for start in range(0, rows, most)]
        self.paths = [folder / f"{name}-{i:03}.npy" for i in range(len(self.lengths))]
        self.files: list[int] = []

    def allocate(self) -> None:
        """Write the headers, and reserve the space on the disk."""
        for path, length in zip(self.paths, self.lengths):
            offset = np.lib.format.open_memmap(path, "w+", self.dtype, (length, self.width)).offset
            assert offset == HEADER
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def open(self) -> None:
        self.files = [os.open(path, os.O_WRONLY) for path in self.paths]

    def write(self, start: int, rows: npt.NDArray[Any]) -> None:
        """Write the rows from row `start` on; where a file ends, go on in the next one."""
        while len(rows):
            shard, within = divmod(start, self.lengths[0])
            part = rows[: self.lengths[shard] - within]
            written = os.pwrite(self.files[shard], part.tobytes(), HEADER + within * self.row)
            if written < part.nbytes:  # the disk is full, and its space could not be reserved
                raise InputError(f"{self.paths[shard]} could not be written")
            start, rows = start + len(part), rows[len(part) :]

    def flush(self) -> None:
        for file in self.files:
            os.fsync(file)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def _check_disk(folder: Path, parts: dict[str, _Part]) -> None:
    """Print the sizes. InputError if the parts and DVC's copy of them do not fit on the disk."""
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
