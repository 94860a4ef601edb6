"""Image sets for training and for inference, of arrays and of files alike.

Threads read, decode and cut the files of the next batches while the device works on a batch: the
decoders release Python's lock, and nothing is copied between processes. Neither the number of
threads nor that of processes changes the result. TorchCodec decodes JPEGs that are upright, PIL all
other files; where both can, their pixels are equal. A GPU decodes JPEGs itself, to pixels that
differ slightly from those of a CPU.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from richkd import params
from richkd.base.errors import InputError, one_line
from richkd.data.dataset import Manifest, Split
from richkd.data.pictures import open_image, orientation, picture, printable, undecodable
from richkd.data.resident import ResidentSet, normalise, to_input
from richkd.data.views import Center, Preprocessing, RandomResizedCrop, Views

# Torchvision is imported where it is used: the import takes as long as torch's own, and images in
# arrays do without.
AHEAD = 4  # batches that are read while the device works on the one before
AT_ONCE = 32  # files that a GPU decodes together; it holds them in full size


def read_bytes(path: Path | str) -> Tensor:
    """A file's bytes, uint8 (n,). InputError if the file is empty or cannot be read."""
    try:
        # torchvision takes no name with bytes that are no UTF-8.
        content = torch.from_numpy(np.fromfile(path, np.uint8))
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from None
    if not len(content):
        raise InputError(f"{printable(path)} cannot be read: it is empty")
    return content


def jpeg_decoder() -> Callable[..., Any]:
    """TorchCodec's `decode_jpeg`. InputError if TorchCodec cannot be loaded.

    TorchCodec is loaded when the first JPEG is decoded: a data set of arrays does not need it.
    """
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError) as error:  # it is for another CUDA than torch, for example
        raise InputError(
            f"TorchCodec, which decodes JPEGs, cannot be loaded ({one_line(error, 200)}): install "
            "torch, torchvision and torchcodec from one package index"
        ) from None
    return decode_jpeg


def decode(path: Path | str) -> Tensor:
    """RGB uint8 (3, H, W), upright; transparent parts are laid on white.

    Raises InputError for a file that is damaged, too large or of another format.
    """
    content = read_bytes(path)
    if content[:2].tolist() == [0xFF, 0xD8]:
        decode_jpeg = jpeg_decoder()
        try:
            # PIL reads the header first: the size, before memory for the pixels is taken, and the
            # orientation, since TorchCodec does not know the orientation in XMP.
            with open_image(BytesIO(content.numpy().data)) as image:
                if orientation(image) == 1:
                    return decode_jpeg(content, mode="RGB")
        except Exception as error:  # PIL's and TorchCodec's depend on where the file is broken
            raise undecodable(path, error) from None
    return torch.from_numpy(np.array(picture(path))).permute(2, 0, 1)


def cut_center(image: Tensor, center: Center) -> Tensor:
    """(..., 3, H, W), uint8 or pixels in [0, 1], to (..., 3, size, size) of the same dtype.

    As torchvision's presets and open_clip's transforms for inference cut an image.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    way, sides = InterpolationMode(center.interpolation), [center.resize]
    height, width = image.shape[-2:]
    if center.resize_mode == "squash":
        sides = [center.resize] * 2
    elif center.resize_mode == "longest":
        ratio = max(height, width) / center.resize
        sides = [max(1, round(side / ratio)) for side in (height, width)]
    resized = TF.resize(image, sides, way, antialias=True)
    if center.resize_mode == "longest":
        down, right = (center.size - side for side in resized.shape[-2:])
        margins = [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2]
        fill = center.fill / 255 if image.is_floating_point() else center.fill
        return TF.pad(resized, margins, fill)
    return TF.center_crop(resized, [center.size])


def cut(image: Tensor, views: RandomResizedCrop, view_id: int, number: int) -> Tensor:
    """A view of image number `number`: uint8 (3, H, W) to (3, size, size)."""
    from torchvision.transforms.v2 import functional as TF

    top, left, height, width, mirrored = views.box(view_id, number, image.shape[2], image.shape[1])
    part = image[:, top : top + height, left : left + width]
    part = TF.resize(part, [views.size] * 2, antialias=True)
    return part.flip(2) if mirrored else part


class FileSet:
    """Images in files, read and cut anew for every batch.

    `begin_epoch` gets all batches of an epoch, so that threads can read ahead. `next_batch` begins
    the next batch; then `batch` gives the images of this batch. A view id is that of the centre or
    one of `views`. By default there are as many `threads` as CPUs for this process.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        views: RandomResizedCrop,
        device: torch.device,
        threads: int | None = None,
    ):
        assert preprocessing.center, "files are always cut"
        self.manifest, self.preprocessing, self.views = manifest, preprocessing, views
        self.center, self.device = preprocessing.center, device
        self.labels = torch.from_numpy(manifest.labels).to(device)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine
        self.readers = ThreadPoolExecutor(threads or max(1, cpus() // processes))
        self.assembler = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # How many files the GPU could not decode in this epoch; the last number that was printed.
        self.refused = self.refused_before = 0
        # The memory of `batch`, as large as the largest batch so far.
        self.pixels = torch.empty(0, 3, self.center.size, self.center.size, device=device)
        self.batches: Iterator[list[tuple[int, int]]] = iter(
            ()
        )  # of the epoch, not yet given to threads
        # Batches that threads are reading. A GPU has the pixels once the event has happened.
        self.ahead: deque[Future[tuple[Tensor, torch.cuda.Event | None]]] = deque()

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self) -> "FileSet":
        """The set for one training run, with batches of its own. Runs share the reading threads."""
        other = copy(self)
        other.assembler, other.pixels = ThreadPoolExecutor(1), torch.empty_like(self.pixels[:0])
        if self.stream:
            # The decoder writes into memory of the current stream, not always in its order. Two
            # runs on one stream could decode into memory that the other run still reads.
            other.stream = torch.cuda.Stream(self.device)
        return other

    # `predict` calls this in inference mode, which the threads do not share.
    @torch.inference_mode(False)
    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of all batches to come, int64 (B,) each, on the device."""
        # All in one copy: a copy for each batch would make the host wait each time.
        lengths = [len(ids) for ids, _ in batches]
        pairs = zip(*(torch.cat(part).tolist() for part in zip(*batches)))
        self.batches = iter([list(islice(pairs, length)) for length in lengths])
        if len(self.pixels) < max(lengths):
            shape = max(lengths), 3, self.center.size, self.center.size
            self.pixels = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
        self.ahead, self.refused = deque(), 0
        for _ in range(AHEAD):
            self._read_next()

    @torch.inference_mode(False)
    def next_batch(self) -> None:
        """The next batch of the epoch begins. InputError names a file that cannot be decoded."""
        pixels, ready = self.ahead.popleft().result()
        self._read_next()
        if ready:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            pixels.record_stream(current)
        normalise(self.pixels[: len(pixels)].copy_(pixels), self.preprocessing)
        if not self.ahead and self.refused != self.refused_before:
            self.refused_before = self.refused
            tqdm.write(f"{self.refused} JPEGs were decoded by the CPU: the GPU could not")

    def batch(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The batch that has begun, whose ids and view ids these are: float32 (B, 3, size, size).

        The next batch takes the same memory.
        """
        return self.pixels[: len(ids)]

    def _read_next(self) -> None:
        """Let threads read one more batch, if the epoch has one."""
        if (batch := next(self.batches, None)) is None:
            return
        shape = len(batch), 3, self.center.size, self.center.size
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.stream is not None)
        parts = [
            self.readers.submit(self._read, number, view_id, out)
            for (number, view_id), out in zip(batch, pixels)
        ]
        self.ahead.append(self.assembler.submit(self._assemble, batch, parts, pixels))

    def _read(self, number: int, view_id: int, out: Tensor) -> Tensor | None:
        """Decode and cut an image into `out`. If the GPU is to decode: return the file's bytes."""
        if self.stream and self.manifest.plain[number]:
            return read_bytes(self._path(number))
        out.copy_(self._cut(decode(self._path(number)), number, view_id))
        return None

    def _assemble(
        self, batch: list[tuple[int, int]], parts: list[Future[Tensor | None]], pixels: Tensor
    ) -> tuple[Tensor, torch.cuda.Event | None]:
        """The batch as uint8 on the device, and the event after which a GPU has it."""
        found = [part.result() for part in parts]
        if self.stream is None:
            return pixels, None
        encoded = [(slot, content) for slot, content in enumerate(found) if content is not None]
        with torch.cuda.stream(self.stream):
            pixels = pixels.to(self.device, non_blocking=True)
            for start in range(0, len(encoded), AT_ONCE):
                slots, contents = zip(*encoded[start : start + AT_ONCE])
                for slot, part in zip(slots, self._decode_together(batch, slots, contents)):
                    pixels[slot].copy_(part)
                # nvJPEG does not always wait for this stream: it could write the next images into
                # memory that these images have just left and the stream still reads.
                self.stream.synchronize()
            return pixels, self.stream.record_event()

    def _decode_together(
        self, batch: list[tuple[int, int]], slots: Sequence[int], contents: Sequence[Tensor]
    ) -> list[Tensor]:
        """The images of `slots`, cut; decoded by the GPU, or by threads where it cannot."""
        decode_jpeg = jpeg_decoder()
        try:
            images = decode_jpeg(list(contents), mode="RGB", device=self.device)
            return [self._cut(image, *batch[slot]) for slot, image in zip(slots, images)]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError:  # a file is broken, or the GPU does not know its kind of JPEG
            self.refused += len(slots)
            numbers = [batch[slot] for slot in slots]
            return list(
                self.readers.map(
                    lambda image: self._cut(decode(self._path(image[0])), *image), numbers
                )
            )

    def _cut(self, image: Tensor, number: int, view_id: int) -> Tensor:
        if view_id == self.views.center:
            return cut_center(image, self.center)
        return cut(image, self.views, view_id, number)

    def _path(self, number: int) -> str:
        return os.path.join(self.manifest.root, self.manifest.paths[number])


class Pixels:
    """Arrays as `engine.Images`: a batch is normalised when it is taken.

    `images` uint8 (n, H, W, 3), which can lie on the disk; `ids` (N,) are the images to take, all
    of them unless given. With `resize` a batch is cut by it first.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        preprocessing: Preprocessing,
        device: torch.device,
        ids: npt.NDArray[np.int64] | None = None,
        resize: Center | None = None,
    ):
        self.images, self.preprocessing, self.device = images, preprocessing, device
        self.resize = resize
        self.ids = np.arange(len(images)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Tensor | slice, /) -> "Pixels":
        chosen = self.ids[ids if isinstance(ids, slice) else ids.cpu().numpy()]
        return Pixels(self.images, self.preprocessing, self.device, chosen, self.resize)

    @property
    def shape(self) -> tuple[int, ...]:
        side = (self.resize.size, self.resize.size) if self.resize else self.images.shape[1:3]
        return len(self), 3, *side

    def new_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device)

    def split(self, batch_size: int, /) -> Iterator[Tensor]:
        for start in range(0, len(self), batch_size):
            part = self.images[self.ids[start : start + batch_size]]
            if self.resize:
                pixels = torch.from_numpy(part).permute(0, 3, 1, 2)
                part = cut_center(pixels, self.resize).permute(0, 2, 3, 1).numpy()
            yield to_input(part, self.preprocessing, self.device)


class Centers:
    """The centres of image files as `engine.Images`; `ids` (N,) are the images to take.

    A batch of `split` is overwritten by the next one.
    """

    def __init__(self, files: FileSet, ids: Tensor):
        self.files, self.ids, self.device = files, ids, files.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Tensor | slice, /) -> "Centers":
        return Centers(self.files, self.ids[ids])

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), 3, self.files.center.size, self.files.center.size

    def new_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device)

    def split(self, batch_size: int, /) -> Iterator[Tensor]:
        centers = torch.full_like(self.ids, RandomResizedCrop.center)
        batches = list(zip(self.ids.split(batch_size), centers.split(batch_size)))
        self.files.begin_epoch(batches)
        for batch in batches:
            self.files.next_batch()
            yield self.files.batch(*batch)


def for_training(
    split: Split | Manifest, preprocessing: Preprocessing, views: params.Views, device: torch.device
) -> ResidentSet | FileSet:
    """The images as batches of their `views`."""
    if isinstance(split, Manifest):
        assert isinstance(views, params.ResizedCrops)  # `richkd.params` allows no others for files
        crops = RandomResizedCrop(views.size, views.scale, views.ratio, views.flip)
        return FileSet(split, preprocessing, crops, device)
    assert isinstance(views, params.PaddedCrops)  # and no others for arrays
    _, height, width, _ = split.images.shape
    finite = Views(height, width, views.pad, views.flip)
    return ResidentSet(split, preprocessing, finite, device)


def for_inference(
    split: Split | Manifest, preprocessing: Preprocessing, device: torch.device
) -> Pixels | Centers:
    """The images as they are, or the centres of files."""
    if isinstance(split, Split):
        return Pixels(split.images, preprocessing, device)
    assert preprocessing.center, "files are always cut"
    unused = RandomResizedCrop(preprocessing.center.size, (1.0, 1.0), (1.0, 1.0), False)
    files = FileSet(split, preprocessing, unused, device)
    return Centers(files, torch.arange(len(split.labels), device=device))


def cpus() -> int:
    """The number of CPUs that this process can use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
