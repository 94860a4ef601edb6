"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits.npy` (V, N, C) and `features.npy` (V, N, D), float16, V the views held (all, or the
centre alone), beside `cache.json`, which says what they were made from. A row of logits is stored
less its largest, where 16 bits are finest; every softmax of it, and of a mixture, stays the same.
But for that rounding a lookup gives what the teacher gives for the augmented image.
`validation.npy` (M, C), float32, is its logits on the validation images as they are.
"""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd import distributed, weights
from richkd.engine import ResidentSet, free_memory, out_of_memory, predict
from richkd.errors import InputError
from richkd.files import read_json, sha256, write_json
from richkd.resume import FOLDER
from richkd.views import Views

TRAIN = "data/train.safetensors"
TABLES = ("logits", "features")
SAVE_EVERY = 5.0  # seconds; flushing takes a tenth of one
AHEAD = 4  # batches gathered while the device works on the one before


class Table:
    """A cache that lies whole on the device; on a CPU, mapped from the disk."""

    def __init__(self, logits: Tensor | None = None, features: Tensor | None = None):
        """(V, N, C) and (V, N, D), V 1 for one that answers for every view; None is never asked."""
        self.parts = {name: x for name, x in zip(TABLES, (logits, features)) if x is not None}

    @property
    def feature_dim(self) -> int:
        return self.parts["features"].shape[-1]

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, C) float32 for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("logits", ids, view_ids).float()

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, D) float32 for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("features", ids, view_ids).float()

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        table = self.parts[part]
        return table[0, ids] if len(table) == 1 else table[view_ids, ids]

    def reader(self) -> "Table":
        """What one training run looks up from."""
        return self

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of the epoch that begins."""

    def advance(self) -> None:
        """The next of these batches begins."""


class Streamed(Table):
    """A cache that stays on the disk: rows are gathered ahead of the batches and sent after.

    It answers for the batch that has begun alone, and always from the same memory, as a CUDA graph
    needs it.
    """

    def __init__(self, parts: dict[str, Tensor], device: torch.device):
        super().__init__(**parts)
        self.device = device
        self.pool = ThreadPoolExecutor(1)
        self.rows: dict[str, Tensor] = {}

    def reader(self) -> "Streamed":
        """Each run has its own batches."""
        return Streamed(self.parts, self.device)

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.rows:
            longest = len(batches[0][0])
            self.rows = {
                name: torch.empty(longest, x.shape[-1], dtype=x.dtype, device=self.device)
                for name, x in self.parts.items()
            }
        # All at once: each would make the host wait for the device.
        lengths = [len(ids) for ids, _ in batches]
        both = (torch.cat(part).cpu().split(lengths) for part in zip(*batches))
        self.batches: Iterator[tuple[Tensor, Tensor]] = zip(*both)
        self.gathered: deque[Future[dict[str, Tensor]]] = deque()
        for _ in range(AHEAD):
            self._gather_next()

    def advance(self) -> None:
        for name, rows in self.gathered.popleft().result().items():
            self.rows[name][: len(rows)].copy_(rows, non_blocking=True)
        self._gather_next()

    def _gather_next(self) -> None:
        if batch := next(self.batches, None):
            self.gathered.append(self.pool.submit(self._gather, *batch))

    def _gather(self, ids: Tensor, view_ids: Tensor) -> dict[str, Tensor]:
        gathered = {}
        for name, table in self.parts.items():
            rows = ids if len(table) == 1 else view_ids * table.shape[1] + ids
            out = table.new_empty(len(ids), table.shape[-1], pin_memory=self.device.type == "cuda")
            gathered[name] = torch.index_select(table.flatten(0, 1), 0, rows, out=out)
        return gathered

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.rows[part][: len(ids)]


def place(parts: dict[str, Tensor], device: torch.device) -> Table:
    """A table on the device if that leaves half of its free memory, else streamed to it."""
    if sum(x.nbytes for x in parts.values()) <= free_memory(device) / 2 or device.type == "cpu":
        return Table(**{name: x.to(device) for name, x in parts.items()})
    return Streamed(parts, device)


def identity(model: Path, views: Views, held: str, **more: Any) -> dict[str, Any]:
    """What a cache is made from: by name, what makes it useless when it changes.

    `model` is the path of the teacher's weights without its suffix, `held` is `all` or `center`,
    `more` is what else shapes the outputs.
    """
    return {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "set of views": {"pad": views.pad, "flip": views.flip, "held": held},
        **{name.replace("_", " "): value for name, value in more.items()},
    }


def of(
    name: str,
    views: Views,
    held: str,
    device: torch.device,
    parts: Sequence[str] = TABLES,
    **more: Any,
) -> Table:
    """The `parts` of the cache of `models/<name>`, for lookups on the device.

    Other arguments as for `identity`; InputError names what it was made from if that is not so now.
    """
    folder = Path("cache") / name
    (model,) = weights.paths(f"models/{name}")
    made_from = read_json(folder / "cache.json")
    for part, needed in identity(model, views, held, **more).items():
        if made_from.get(part) != needed:
            raise InputError(
                f"{folder} was made with another {part} ({_short(made_from.get(part))}, needed is "
                f"{_short(needed)}): make it again"
            )
    # Mapped: what a CPU never looks up takes no memory.
    arrays = {part: np.load(folder / f"{part}.npy", mmap_mode="c") for part in parts}
    table = place({part: torch.from_numpy(array) for part, array in arrays.items()}, device)
    size = sum(array.nbytes for array in arrays.values())
    way = "streamed from the disk" if isinstance(table, Streamed) else f"on the {device.type}"
    tqdm.write(f"{folder}: {size / 1e6:,.1f} MB of {' and '.join(parts)}, {way}")
    return table


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allocate(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Float16 tables on disk, with all their space taken.

    InputError where they and the copy that DVC makes of them do not fit there.
    """
    needed = 2 * sum(2 * math.prod(shape) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    sizes = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items())
    tqdm.write(
        f"{sizes} in float16: {needed / 2e6:,.1f} MB, and as much in DVC's cache; "
        f"{free / 1e6:,.0f} MB of disk are free"
    )
    if needed > free:
        raise InputError(
            f"a cache of {needed / 2e6:,.1f} MB, and as much in DVC's, do not fit on the disk of "
            f"{folder.resolve()}, where {free / 1e6:,.1f} MB are free: free some, or hold the centre "
            "view alone (cache.teacher, cache.clip)"
        )
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _rows(logits: Tensor, features: Tensor) -> tuple[tuple[Tensor, Tensor], torch.cuda.Event | None]:
    """What the tables hold of a batch, on its way to the CPU; there once the event has passed."""
    logits = logits - logits.amax(1, keepdim=True)
    rows = tuple(x.half().to("cpu", non_blocking=True) for x in (logits, features))
    event = None
    if logits.is_cuda:
        event = torch.cuda.Event()
        event.record()
    return rows, event


def build(
    folder: Path | str,
    model: nn.Module,
    data: ResidentSet,
    view_ids: Sequence[int],
    validation: Tensor,
    batch_size: int,
    precision: str,
    made_from: dict[str, Any],
    key: str,
) -> tuple[Tensor, Tensor]:
    """Run `model` on the views of every image; goes on where a killed run of this `key` stopped.

    `validation` is normalised images (M, 3, H, W); `made_from` comes from `identity`. Several
    processes share the batches and write the same bytes as one. Returns the logits (M, C) and
    features (M, D) of the validation images. InputError where disk or memory are too small, before
    the work starts where that can be told.
    """
    work = FOLDER / f"cache-{Path(folder).name}"
    progress_file, done_file = work / "progress.json", work / "done.npy"
    first = distributed.rank() == 0
    starts = range(0, len(data), batch_size)
    batches = [(view, start) for view in range(len(view_ids)) for start in starts]
    if not first:
        pass  # the first decides and prepares
    elif progress_file.exists() and read_json(progress_file)["key"] == key:
        tqdm.write(f"going on from {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        nothing = torch.zeros(0, dtype=torch.int64, device=data.device)
        found = predict(model, data.batch(nothing, nothing), batch_size, precision)
        shape = len(view_ids), len(data)
        _allocate(work, {name: (*shape, x.shape[1]) for name, x in zip(TABLES, found)})
        np.save(done_file, np.zeros(len(batches), bool))
        write_json(progress_file, {"key": key})
    distributed.wait()
    tables = {name: np.load(work / f"{name}.npy", mmap_mode="r+") for name in TABLES}
    done = np.load(done_file, mmap_mode="r+")
    ahead = np.flatnonzero(~done)[distributed.rank() :: distributed.processes()]
    distributed.wait()  # before anyone marks one as done

    bar = tqdm(total=len(done), initial=int(done.sum()), desc=str(folder), unit="image",
               unit_scale=batch_size)  # fmt: skip
    finished: list[int] = []
    saved = time.monotonic()

    def save() -> None:
        for table in tables.values():
            table.flush()
        done[finished] = True
        done.flush()
        finished.clear()

    def write(number: int, rows: tuple[Tensor, Tensor], event: torch.cuda.Event | None) -> None:
        view, start = batches[number]
        if event:
            event.synchronize()
        for name, part in zip(TABLES, rows):
            if not np.isfinite(part.numpy()).all():
                raise InputError(
                    f"{folder}: the {name} of images {start} to {start + len(part) - 1} are not finite, "
                    "or beyond 65,504, the largest number of the table's 16 bits: another teacher?"
                )
            tables[name][view, start : start + len(part)] = part.numpy()
        finished.append(number)
        bar.update(distributed.processes())

    with out_of_memory("cache.batch_size"):
        pending: deque[tuple[Any, ...]] = deque()
        lag = int(data.device.type == "cuda")  # it is at the next batch while one is written
        for number in ahead:
            view, start = batches[number]
            ids = torch.arange(start, min(start + batch_size, len(data)), device=data.device)
            views = torch.full_like(ids, view_ids[view])
            rows = _rows(*predict(model, data.batch(ids, views), batch_size, precision))
            pending.append((number, *rows))
            if len(pending) > lag:
                write(*pending.popleft())
            if time.monotonic() - saved >= SAVE_EVERY:
                save()
                saved = time.monotonic()
        for batch in pending:
            write(*batch)
        save()
        bar.close()
        distributed.wait()
        logits, features = predict(model, validation, batch_size, precision)
    if first:
        np.save(work / "validation.npy", logits.cpu().numpy())
        tables.clear()
        for path in (progress_file, done_file):
            path.unlink()
        write_json(work / "cache.json", made_from)
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        work.rename(folder)
    distributed.wait()
    return logits, features
