"""Image sets for training and for inference, of arrays and of files alike.

Files are read, decoded and cut by threads while the device works on the batches before: torchvision's
decoders leave Python's lock alone, and nothing is copied between processes. What they give depends
neither on their number nor on that of the processes. A GPU decodes JPEGs itself, to slightly other
pixels than a CPU.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from richkd import params
from richkd.base.errors import InputError, one_line
from richkd.data.dataset import Manifest, Split, picture
from richkd.data.resident import ResidentSet, normalise, to_input
from richkd.data.views import Center, RandomResizedCrop, Views

AHEAD = 4  # batches that are read while the device works on the one before
AT_ONCE = 32  # files that a GPU decodes, which it holds in full


def read(path: Path | str) -> Tensor:
    """A file's bytes, uint8 (n,); InputError where it cannot be read."""
    try:
        return read_file(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


def decode(path: Path | str) -> Tensor:
    """RGB uint8 (3, H, W), upright; InputError names a file that is broken."""
    content = read(path)
    if content[:2].tolist() != [0xFF, 0xD8]:
        # By PIL, since a broken PNG makes torchvision 0.29 end the process.
        return torch.from_numpy(np.array(picture(path))).permute(2, 0, 1)
    try:
        return decode_jpeg(content, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be decoded: {one_line(error)}") from None


def cut_center(image: Tensor, center: Center) -> Tensor:
    """uint8 (3, H, W) to (3, size, size), as torchvision's presets for inference do it."""
    way = InterpolationMode(center.interpolation)
    return TF.center_crop(TF.resize(image, [center.resize], way, antialias=True), [center.size])


def cut(image: Tensor, views: RandomResizedCrop, view_id: int, number: int) -> Tensor:
    """The view of image `number`: uint8 (3, H, W) to (3, size, size)."""
    top, left, height, width, mirrored = views.box(view_id, number, image.shape[2], image.shape[1])
    part = image[:, top : top + height, left : left + width]
    part = TF.resize(part, [views.size] * 2, antialias=True)
    return part.flip(2) if mirrored else part


class FileSet:
    """Images in files: `start` gets the batches to come, `advance` begins the next of them.

    `batch` then gives that one, until the next begins. A view id is the centre's or one of `views`.
    """

    def __init__(
        self,
        manifest: Manifest,
        mean: Sequence[float],
        std: Sequence[float],
        views: RandomResizedCrop,
        center: Center,
        device: torch.device,
        threads: int | None = None,
    ):
        self.manifest, self.mean, self.std, self.views, self.center = (
            manifest,
            mean,
            std,
            views,
            center,
        )
        self.device = device
        self.labels = torch.from_numpy(manifest.labels).to(device)
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.readers = ThreadPoolExecutor(threads or max(1, cpus() // on_this_machine))
        self.assembler = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # There once: sent with each batch they would make the host wait.
        self.normalisation = [torch.tensor(x, device=device) for x in (mean, std)]
        self.pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self) -> "FileSet":
        """Each training run has its own batches; the threads that read are shared."""
        other = copy(self)
        other.assembler, other.pixels = ThreadPoolExecutor(1), None
        return other

    @torch.inference_mode(False)  # `predict` may ask, and threads know nothing of its mode
    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of what `advance` and `batch` will be asked for."""
        # All at once: each would make the host wait for the device.
        lengths = [len(ids) for ids, _ in batches]
        pairs = zip(*(torch.cat(part).tolist() for part in zip(*batches)))
        self.batches = iter([list(islice(pairs, length)) for length in lengths])
        if self.pixels is None or len(self.pixels) < max(lengths):
            self.pixels = torch.empty(
                max(lengths), 3, self.center.size, self.center.size, device=self.device,
                memory_format=torch.channels_last,
            )  # fmt: skip
        self.ahead: deque[Future[Tensor]] = deque()
        for _ in range(AHEAD):
            self._read_next()

    @torch.inference_mode(False)
    def advance(self) -> None:
        """The next of these batches begins."""
        pixels = self.ahead.popleft().result()
        self._read_next()
        if self.stream:
            pixels.record_stream(torch.cuda.current_stream(self.device))
        normalise(self.pixels[: len(pixels)].copy_(pixels), *self.normalisation)

    def batch(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The batch that has begun, which is of these: float32 (B, 3, size, size)."""
        return self.pixels[: len(ids)]

    def _read_next(self) -> None:
        if (batch := next(self.batches, None)) is None:
            return
        shape = len(batch), 3, self.center.size, self.center.size
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.stream is not None)
        parts = [self.readers.submit(self._read, *pair, out) for pair, out in zip(batch, pixels)]
        self.ahead.append(self.assembler.submit(self._assemble, batch, parts, pixels))

    def _read(self, number: int, view_id: int, out: Tensor) -> Tensor | None:
        """Fill `out`, or return the file's bytes where they are for the GPU."""
        if self.stream and self.manifest.plain[number]:
            return read(self._path(number))
        out.copy_(self._cut(decode(self._path(number)), number, view_id))
        return None

    def _assemble(
        self, batch: list[tuple[int, int]], parts: list[Future[Tensor | None]], pixels: Tensor
    ) -> Tensor:
        """The batch as uint8 on the device."""
        found = [part.result() for part in parts]
        if self.stream is None:
            return pixels
        encoded = [(slot, content) for slot, content in enumerate(found) if content is not None]
        with torch.cuda.stream(self.stream):
            pixels = pixels.to(self.device, non_blocking=True)
            for start in range(0, len(encoded), AT_ONCE):
                slots, contents = zip(*encoded[start : start + AT_ONCE])
                try:
                    images = decode_jpeg(list(contents), ImageReadMode.RGB, self.device)
                    cuts = [self._cut(image, *batch[slot]) for slot, image in zip(slots, images)]
                except RuntimeError:  # one that the GPU cannot decode, or that is broken
                    cuts = [self._cut(decode(self._path(batch[x][0])), *batch[x]) for x in slots]
                for slot, part in zip(slots, cuts):
                    pixels[slot].copy_(part)
                # The decoder writes without waiting for this stream, into memory that the images
                # before have left.
                self.stream.synchronize()
        return pixels

    def _cut(self, image: Tensor, number: int, view_id: int) -> Tensor:
        if view_id == self.views.center:
            return cut_center(image, self.center)
        return cut(image, self.views, view_id, number)

    def _path(self, number: int) -> str:
        return os.path.join(self.manifest.root, self.manifest.paths[number])


class Pixels:
    """Arrays as inputs, normalised as asked for: of a tensor (N, 3, H, W) what `engine.predict` uses.

    `images` uint8 (n, H, W, 3), which may lie on the disk; `ids` are those of them that are meant,
    by default all.
    """

    def __init__(
        self,
        images: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        ids: np.ndarray | None = None,
    ):
        self.images, self.mean, self.std, self.device = images, mean, std, device
        self.ids = np.arange(len(images)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Tensor | slice) -> "Pixels":
        ids = ids if isinstance(ids, slice) else ids.cpu().numpy()
        return Pixels(self.images, self.mean, self.std, self.device, self.ids[ids])

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), 3, *self.images.shape[1:3]

    def new_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(self), batch_size):
            part = self.images[self.ids[start : start + batch_size]]
            yield to_input(part, self.mean, self.std, self.device)


class Centers:
    """The centre views of files as inputs: of a tensor (N, 3, H, W) what `engine.predict` uses.

    A batch holds until the next is asked for.
    """

    def __init__(self, files: FileSet, ids: Tensor):
        self.files, self.ids, self.device = files, ids, files.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Tensor | slice) -> "Centers":
        return Centers(self.files, self.ids[ids])

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), 3, self.files.center.size, self.files.center.size

    def new_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        centers = torch.full_like(self.ids, RandomResizedCrop.center)
        batches = list(zip(self.ids.split(batch_size), centers.split(batch_size)))
        self.files.start(batches)
        for batch in batches:
            self.files.advance()
            yield self.files.batch(*batch)


def for_training(
    split: Split | Manifest,
    mean: Sequence[float],
    std: Sequence[float],
    views: params.Views,
    center: Center | None,
    device: torch.device,
) -> ResidentSet | FileSet:
    """Batches of views of the images; `center` is how files are cut for the centre view."""
    if isinstance(split, Manifest):
        crops = RandomResizedCrop(views.size, views.scale, views.ratio, views.flip)
        return FileSet(split, mean, std, crops, center, device)
    finite = Views(*split.images.shape[1:3], views.pad, views.flip)
    return ResidentSet(split, mean, std, finite, device)


def for_inference(
    split: Split | Manifest,
    mean: Sequence[float],
    std: Sequence[float],
    center: Center | None,
    device: torch.device,
) -> Pixels | Centers:
    """The images as they are, or the centres of files."""
    if isinstance(split, Split):
        return Pixels(split.images, mean, std, device)
    crops = RandomResizedCrop(
        center.size, (1.0, 1.0), (1.0, 1.0), False
    )  # of which none is asked for
    files = FileSet(split, mean, std, crops, center, device)
    return Centers(files, torch.arange(len(split.labels), device=device))


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
