"""A teacher as a table: its logits and features for every training image and view.

`<folder>/logits-000.npy`, `-001`, … hold the rows of (V · N, C), `features-…` those of (V · N, D),
float16 and at most 256 MB a file: V views (all, or the centre alone) of N images, views outermost.
Beside them `cache.json` says what they were made from. A row of logits is stored less its largest,
where 16 bits are finest; every softmax of it, and of a mixture, stays the same. But for that
rounding a lookup gives what the teacher gives for the augmented image. `validation.npy` (M, C),
float32, is its logits on the validation images as they are.

With top_k a row of logits is the k largest in falling order and, last, what all others share: the
logarithm of the mean of their exponentials; `classes-…`, int16 or int32, are those of the k. A lookup
gives all C again, the others equal. A loss then sees a teacher that spreads what it leaves to the
rest evenly: at temperature 1 the k probabilities and the rest's sum are the teacher's own, at a
higher one the rest's sum is larger than the teacher's.

A teacher that is online has no rows: it runs along on the batch at hand (`Online`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd import distributed, weights
from richkd.engine import ResidentSet, autocast, free_memory, out_of_memory, predict
from richkd.errors import InputError
from richkd.files import read_json, sha256, write_json
from richkd.models import ModelOutput
from richkd.resume import FOLDER
from richkd.views import RandomResizedCrop, Views

if TYPE_CHECKING:  # torchvision takes a second
    from richkd.imagesets import Centers, FileSet, Pixels

ViewSet = Views | RandomResizedCrop

TRAIN = "data/train.safetensors"
SHARD_BYTES = 256_000_000
HEADER = 128  # bytes, of a .npy of two dimensions
SAVE_EVERY = 5.0  # seconds; flushing takes a tenth of one
AHEAD = 4  # batches gathered while the device works on the one before


class Table:
    """A cache that lies whole on the device; on a CPU, mapped from the disk."""

    def __init__(
        self,
        logits: Tensor | None = None,
        features: Tensor | None = None,
        classes: Tensor | None = None,
        num_classes: int | None = None,
    ):
        """(V, N, C) and (V, N, D), V 1 for one that answers for every view; None is never asked.

        With `classes` (V, N, k), logits are (V, N, k + 1), of `num_classes`.
        """
        parts = {"logits": logits, "features": features, "classes": classes}
        self.parts = {name: x for name, x in parts.items() if x is not None}
        self.num_classes = num_classes

    @property
    def feature_dim(self) -> int:
        return self.parts["features"].shape[-1]

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, C) float32 for images `ids` (B,) in views `view_ids` (B,), up to a constant a row."""
        rows = self._lookup("logits", ids, view_ids).float()
        if "classes" not in self.parts:
            return rows
        largest = self._lookup("classes", ids, view_ids).long()
        every = rows[:, -1:].repeat(1, self.num_classes)  # what all but the largest share
        return every.scatter_(1, largest, rows[:, :-1])

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """(B, D) float32 for images `ids` (B,) in views `view_ids` (B,)."""
        return self._lookup("features", ids, view_ids).float()

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        table = self.parts[part]
        return table[0, ids] if len(table) == 1 else table[view_ids, ids]

    def reader(self, data: ResidentSet | FileSet) -> Table:
        """What one training run, whose images `data` has, looks up from."""
        return self

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of the epoch that begins."""

    def advance(self) -> None:
        """The next of these batches begins."""


class Streamed(Table):
    """A cache that stays on the disk: rows are gathered ahead of the batches and sent after.

    It answers for the batch that has begun alone, and always from the same memory, as a CUDA graph
    needs it. A part is its shards, (rows, width) each; `images` is N, None where the centre
    answers for every view.
    """

    def __init__(
        self,
        shards: dict[str, list[Tensor]],
        images: int | None,
        device: torch.device,
        num_classes: int | None = None,
    ):
        super().__init__(num_classes=num_classes)
        self.parts, self.images, self.device = shards, images, device
        self.pool = ThreadPoolExecutor(1)
        self.rows: dict[str, Tensor] = {}

    @property
    def feature_dim(self) -> int:
        return self.parts["features"][0].shape[-1]

    def reader(self, data: ResidentSet | FileSet) -> Streamed:
        """Each run has its own batches."""
        return Streamed(self.parts, self.images, self.device, self.num_classes)

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.rows:
            longest = len(batches[0][0])
            self.rows = {
                name: torch.empty(longest, x.shape[-1], dtype=x.dtype, device=self.device)
                for name, (x, *_) in self.parts.items()
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
        rows = ids if self.images is None else view_ids * self.images + ids
        gathered = {}
        for name, shards in self.parts.items():
            first = shards[0]
            pin = self.device.type == "cuda"
            out = first.new_empty(len(rows), first.shape[-1], pin_memory=pin)
            if len(shards) == 1:
                torch.index_select(first, 0, rows, out=out)
            else:
                shard, within = rows // len(first), rows % len(first)
                for number in shard.unique().tolist():
                    here = shard == number
                    out[here] = shards[number][within[here]]
            gathered[name] = out
        return gathered

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self.rows[part][: len(ids)]


class Online(Table):
    """A frozen teacher that runs on each batch, as the student sees it; on a GPU in bf16."""

    def __init__(self, loaded: weights.Loaded, data: ResidentSet | FileSet | None = None):
        super().__init__()
        self.loaded, self.data = loaded, data
        self.output: ModelOutput | None = None
        if data is not None:  # the batch is normalised for the student
            mean, std = (torch.tensor(x, device=data.device) for x in (loaded.mean, loaded.std))
            own_mean, own_std = (torch.tensor(x, device=data.device) for x in (data.mean, data.std))
            self.scale = (own_std / std).view(3, 1, 1)
            self.shift = ((own_mean - mean) / std).view(3, 1, 1)

    @property
    def feature_dim(self) -> int:
        return self.loaded.model.feature_dim

    def reader(self, data: ResidentSet | FileSet) -> Online:
        """It sees what the run sees."""
        return Online(self.loaded, data)

    def advance(self) -> None:
        self.output = None

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        if self.output is None:  # once for both parts
            on_gpu = self.data.device.type == "cuda"
            with torch.no_grad(), autocast(self.data.device, "bf16" if on_gpu else "fp32"):
                images = self.data.batch(ids, view_ids) * self.scale + self.shift
                self.output = self.loaded.model(images)
        return getattr(self.output, part)


def place(
    shards: dict[str, list[Tensor]],
    views: int,
    images: int,
    device: torch.device,
    num_classes: int | None = None,
) -> Table:
    """The parts, of `views` views of `images` images, on the device or streamed to it.

    On a GPU where that leaves half of its free memory; on a CPU where one file holds a part, which is
    mapped.
    """
    size = sum(x.nbytes for part in shards.values() for x in part)
    if device.type == "cpu":
        whole = all(len(part) == 1 for part in shards.values())
    else:
        whole = size <= free_memory(device) / 2
    if not whole:
        return Streamed(shards, images if views > 1 else None, device, num_classes)
    parts = {}
    for name, (first, *more) in shards.items():
        if more:  # not torch.cat, which takes as much memory again
            table = first.new_empty(views * images, first.shape[-1], device=device)
            for rows, shard in zip(table.split(len(first)), shards[name]):
                rows.copy_(shard)
        else:
            table = first.to(device)
        parts[name] = table.view(views, images, -1)
    return Table(**parts, num_classes=num_classes)


def identity(model: Path, views: ViewSet, held: str, top_k: int | None, **more: Any) -> dict[str, Any]:
    """What a cache is made from: by name, what makes it useless when it changes.

    `model` is the path of the teacher's weights without its suffix, `held` is `all`, `center` or
    `online`, `more` is what else shapes the outputs.
    """
    record = read_json(f"{model}.json")
    return {
        "data set": sha256(TRAIN),
        "teacher": sha256(f"{model}.safetensors"),
        "input of the teacher": {key: record.get(key) for key in ("mean", "std", "center", "input")},
        "set of views": {**views.described, "held": held},
        "top k": top_k,
        **{name.replace("_", " "): value for name, value in more.items()},
    }


def of(
    name: str,
    views: ViewSet,
    held: str,
    top_k: int | None,
    device: torch.device,
    parts: Sequence[str] = ("logits", "features"),
    **more: Any,
) -> Table:
    """The `parts` of the cache of `models/<name>`, for lookups on the device.

    Other arguments as for `identity`; InputError names what it was made from if that is not so now.
    """
    folder = Path("cache") / name
    (model,) = weights.paths(f"models/{name}")
    made_from = read_json(folder / "cache.json")
    needed = json.loads(json.dumps(identity(model, views, held, top_k, **more)))  # tuples to lists
    for part, value in needed.items():
        if made_from.get(part) != value:
            raise InputError(
                f"{folder} was made with another {part} ({_short(made_from.get(part))}, needed is "
                f"{_short(value)}): make it again"
            )
    if held == "online":
        tqdm.write(f"{folder}: the teacher runs along, on the {device.type}")
        return Online(weights.load_classifier(model, device))
    if top_k and "logits" in parts:
        parts = [*parts, "classes"]
    # Mapped: what a CPU never looks up takes no memory.
    shards = {part: _open(folder, part) for part in parts}
    shape = made_from["shape"]
    tensors = {part: [torch.from_numpy(x) for x in arrays] for part, arrays in shards.items()}
    table = place(tensors, shape["views"], shape["images"], device, shape["classes"])
    size = sum(x.nbytes for part in tensors.values() for x in part)
    way = "streamed from the disk" if isinstance(table, Streamed) else f"on the {device.type}"
    tqdm.write(f"{folder}: {size / 1e6:,.1f} MB of {' and '.join(parts)}, {way}")
    return table


def _open(folder: Path, part: str) -> list[np.ndarray]:
    """The shards of a part in order, mapped."""
    paths = sorted(folder.glob(f"{part}-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    return [np.load(path, mmap_mode="c") for path in paths]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
        rows |= {"logits": torch.cat([values, rest], 1), "classes": classes.to(_index(logits.shape[1]))}
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
    `identity`. Several processes share the batches and write the same bytes as one. Returns the
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
