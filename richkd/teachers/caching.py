"""Makes the table of a teacher (`richkd.teachers.table`); a killed run goes on where it stopped."""

import io
import json
import math
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd.base import distributed, kept
from richkd.base.errors import InputError
from richkd.base.files import sha256, write_array, write_json, writing
from richkd.base.kept import FOLDER
from richkd.data.imagesets import FileSet
from richkd.data.resident import ResidentSet
from richkd.engine import Images, out_of_memory, predict

SHARD_BYTES = 256_000_000
HEADER = 128  # bytes of the header of a .npy file of two dimensions
SAVE_EVERY = 5.0  # seconds; saving takes a tenth of a second
MARK = np.dtype("<u8")  # of a batch, in the file `done`


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
    """A table while it is made, in a folder of its own, from which `folder` is made at last.

    Its rows are written in batches of one view. The file `done` has a mark for each batch, which
    says whether the rows are on the disk, and holds their checksum.

    The folder stays when the table is finished: all its batches are done (`richkd.base.kept`).
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
        self.written: list[tuple[int, int]] = []  # batches and marks that are not in `done` yet

    def begin_or_resume(self, key: str) -> None:
        """Make the files, unless a killed or finished run of this key has left them whole."""
        if self._usable(key):
            tqdm.write(f"continuing from {self.work}")
            return
        kept.forget(self.folder)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        _check_disk(self.work, self.parts)
        for part in self.parts.values():
            part.allocate()
        with writing(self.done_file), open(self.done_file, "wb") as file:
            file.write(bytes(MARK.itemsize * len(self.batches)))
            _to_disk(file)
        write_json(self.key_file, {"key": key})

    def _usable(self, key: str) -> bool:
        """Whether the work can go on; batches whose rows are damaged are marked to be done again.

        Says in a line what is damaged.
        """
        if not self.key_file.exists():  # nothing was begun, or killed while the files were made
            return False
        try:
            if json.loads(self.key_file.read_text())["key"] != key:
                return False
            marks = np.fromfile(self.done_file, MARK)
            whole = self.done_file.stat().st_size == MARK.itemsize * len(self.batches)
            whole = whole and all(part.whole() for part in self.parts.values())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            damaged = [int(n) for n in np.flatnonzero(marks) if self._mark(int(n)) != marks[n]]
            if not damaged:
                return True
            # The files of a finished table are those of `folder`, too: they must not be changed.
            if not (self.work / "cache.json").exists():
                tqdm.write(f"{self.work}: {len(damaged)} batches are damaged and are done again")
                marks[damaged] = 0
                with writing(self.done_file), open(self.done_file, "r+b") as file:
                    file.write(marks.tobytes())
                    _to_disk(file)
                return True
        tqdm.write(f"{self.work} is damaged: starting anew")
        return False

    def _mark(self, number: int) -> int:
        """The mark of a batch whose rows are on the disk."""
        view, start = self.batches[number]
        count = min(self.batch_size, self.images - start)
        return _checksum(x.read(view * self.images + start, count) for x in self.parts.values())

    def open(self) -> list[int]:
        """Open the files for writing; the numbers of the batches that this process has to do."""
        before = np.fromfile(self.done_file, MARK) != 0
        self.bar = tqdm(
            total=len(self.batches),
            initial=int(before.sum()),
            desc=str(self.folder),
            unit="image",
            unit_scale=self.batch_size,
        )
        self.done = os.open(self.done_file, os.O_WRONLY)
        left = np.flatnonzero(~before)[distributed.rank() :: distributed.processes()]
        if len(left):
            for part in self.parts.values():
                part.open()
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
        for name, values in rows.items():
            if not torch.isfinite(values).all():
                raise InputError(
                    f"{self.folder}: the {name} of images {start} to {start + len(values) - 1} are "
                    "not finite, or beyond 65,504, the largest number of the table's 16 bits: "
                    "another teacher?"
                )
        content = {name: rows[name].numpy().tobytes() for name in self.parts}
        for name, part in self.parts.items():
            part.write(view * self.images + start, content[name])
        self.written.append((number, _checksum(content.values())))
        self.bar.update(distributed.processes())

    def save(self) -> None:
        """Bring all rows to the disk; then mark their batches as done."""
        for part in self.parts.values():
            part.flush()
        with writing(self.done_file):
            for number, mark in self.written:
                os.pwrite(self.done, mark.to_bytes(MARK.itemsize, "little"), MARK.itemsize * number)
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
        """Add the files that describe the table, and put all that belongs to it into `folder`."""
        write_array(self.work / "validation.npy", validation_logits.cpu().numpy())
        classes = validation_logits.shape[1]
        shape = {"views": self.views, "images": self.images, "classes": classes}
        # The fused teacher knows its tables by this file alone: it names what they hold, too.
        content = {path.name: sha256(path) for path in sorted(self.work.glob("*.npy"))}
        write_json(self.work / "cache.json", {**made_from, "shape": shape, "content": content})
        self._publish([*content, "cache.json"])
        kept.keep(self.folder, [self.work])

    def _publish(self, names: Sequence[str]) -> None:
        """Make `folder` of these files, which stay in the folder of the work, too.

        Links take no space. Where `folder` is on another disk, the files are copied.
        """
        part = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            for name in names:
                try:
                    os.link(self.work / name, part / name)
                except OSError:
                    shutil.copyfile(self.work / name, part / name)
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


class _Part:
    """The files of logits, features or classes while they are filled.

    Rows are written with `pwrite` and neither mapped nor read, so that machines which share a file
    system can share the work: a mapped page in the memory of one machine would overwrite the rows
    of another.
    """

    def __init__(self, folder: Path, name: str, rows: int, width: int, dtype: npt.DTypeLike):
        self.dtype, self.width, self.row = dtype, width, width * np.dtype(dtype).itemsize
        most = max(1, (SHARD_BYTES - HEADER) // self.row)
        self.most = most
        self.lengths = [min(most, rows - start) for start in range(0, rows, most)]
        self.paths = [folder / f"{name}-{i:03}.npy" for i in range(len(self.lengths))]
        self.files: list[int] = []

    def allocate(self) -> None:
        """Write the headers, and reserve the space on the disk."""
        for path, length in zip(self.paths, self.lengths):
            size = HEADER + length * self.row
            with writing(path), open(path, "wb") as file:
                file.write(self._header(length))
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
                _to_disk(file)

    def _header(self, length: int) -> bytes:
        header = io.BytesIO()
        shape = {"descr": np.lib.format.dtype_to_descr(np.dtype(self.dtype))}
        np.lib.format.write_array_header_1_0(
            header, {**shape, "fortran_order": False, "shape": (length, self.width)}
        )
        assert len(header.getvalue()) == HEADER
        return header.getvalue()

    def whole(self) -> bool:
        """Whether all files are there, with their headers and lengths. OSError if one is not."""
        for path, length in zip(self.paths, self.lengths):
            with open(path, "rb") as file:
                header = file.read(HEADER)
            size = HEADER + length * self.row
            if path.stat().st_size != size or header != self._header(length):
                return False
        return True

    def open(self) -> None:
        self.files = [os.open(path, os.O_WRONLY) for path in self.paths]

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where the rows from row `start` on lie: file, position in it, bytes."""
        while count:
            shard, within = divmod(start, self.most)
            piece = min(count, self.lengths[shard] - within)
            yield shard, HEADER + within * self.row, piece * self.row
            start, count = start + piece, count - piece

    def write(self, start: int, content: bytes) -> None:
        """Write rows from row `start` on; where a file ends, go on in the next one."""
        for shard, position, size in self._pieces(start, len(content) // self.row):
            with writing(self.paths[shard]):
                written = os.pwrite(self.files[shard], content[:size], position)
            if written < size:  # the disk is full, and its space could not be reserved
                raise InputError(f"{self.paths[shard]} could not be written")
            content = content[size:]

    def read(self, start: int, count: int) -> bytes:
        """The bytes of the rows from row `start` on."""
        found = []
        for shard, position, size in self._pieces(start, count):
            with open(self.paths[shard], "rb", buffering=0) as file:
                found.append(os.pread(file.fileno(), size, position))
        return b"".join(found)

    def flush(self) -> None:
        for file in self.files:
            os.fsync(file)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def _checksum(content: Iterable[bytes]) -> int:
    """The mark of a batch with this content: never 0, which says that the batch is not done."""
    total = 0
    for part in content:
        total = zlib.crc32(part, total)
    return total | 1 << 32


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


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
