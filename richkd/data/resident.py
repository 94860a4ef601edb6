"""An image set that lives on the device."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from richkd.base.errors import InputError
from richkd.data.dataset import Split
from richkd.data.views import Preprocessing, Views
from richkd.engine import free_memory


def to_input(
    images: npt.NDArray[np.uint8], preprocessing: Preprocessing, device: torch.device
) -> Tensor:
    """uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W) on the device."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    # The result lies in memory as the images do: channels last.
    return normalise(pixels, preprocessing)


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Levels 0 to 255, float32 (N, 3, H, W), to a network's input, in place."""
    mean, std = (
        on_device(tuple(values), pixels.device).view(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return pixels.div_(255).sub_(mean).div_(std)


@cache
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A constant, float32 (n,), sent once: the host waits for the device whenever it sends one."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


class ResidentSet:
    """Training images on the device, padded, mirrored and normalised once.

    `batch` gathers views of the images. Raises InputError if the images do not fit into the
    device's memory.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, views: Views, device: torch.device
    ):
        border = [(0, 0), (views.pad, views.pad), (views.pad, views.pad), (0, 0)]
        pixels = len(split.images) * (views.height + 2 * views.pad) * (views.width + 2 * views.pad)
        # A pixel has three channels, each of 4 bytes as float32 and of 1 byte before; mirror images
        # take as much again.
        needed, free = 15 * pixels * (2 if views.flip else 1), free_memory(device)
        if needed > free:
            raise InputError(
                f"{len(split.images)} images padded by views.pad {views.pad} take "
                f"{needed / 1e6:,.1f} MB of memory on the {device.type}, {free / 1e6:,.1f} MB are "
                "free: take fewer or smaller images"
            )
        padded = torch.from_numpy(np.pad(split.images, border))  # black, before normalising
        rows = views.mirrored(padded.permute(0, 3, 1, 2))  # bytes are a quarter of the work
        normalised = to_input(rows.flatten(0, 1).numpy(), preprocessing, device)
        self.mirrored = normalised.permute(0, 2, 3, 1).unflatten(0, rows.shape[:2])
        self.labels = torch.from_numpy(split.labels).to(device)
        self.preprocessing, self.views, self.device = preprocessing, views, device

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self) -> "ResidentSet":
        """The set itself: training runs side by side can share it."""
        return self

    def begin_epoch(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Nothing has to be prepared; see `richkd.data.imagesets.FileSet`."""

    def next_batch(self) -> None:
        """Nothing has to be prepared; see `richkd.data.imagesets.FileSet`."""

    def batch(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the images `ids` (B,): float32 (B, 3, H, W)."""
        return self.views.crop(self.mirrored, ids, view_ids)
