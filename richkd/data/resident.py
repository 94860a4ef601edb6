"""An image set that lives on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from richkd.base.errors import InputError
from richkd.data.dataset import Split
from richkd.data.views import Views
from richkd.engine import free_memory


def to_input(
    images: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W) on the device."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    return normalise(pixels, mean, std)  # channels last, as the images came


def normalise(
    pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """Grey levels, 0 to 255, (N, 3, H, W), to a network's input, in place."""
    mean, std = (torch.as_tensor(x, device=pixels.device).view(3, 1, 1) for x in (mean, std))
    return pixels.div_(255).sub_(mean).div_(std)


class ResidentSet:
    """Images padded, mirrored and normalised once, on the device; `batch` gathers views of them.

    Raises InputError where they do not fit in its memory.
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        views: Views,
        device: torch.device,
    ):
        border = [(0, 0), (views.pad, views.pad), (views.pad, views.pad), (0, 0)]
        pixels = len(split.images) * (views.height + 2 * views.pad) * (views.width + 2 * views.pad)
        # Three channels of float32, and of the bytes that they are made from; the same for mirrors.
        needed, free = 15 * pixels * (2 if views.flip else 1), free_memory(device)
        if needed > free:
            raise InputError(
                f"{len(split.images)} images padded by views.pad {views.pad} take {needed / 1e6:,.1f} MB "
                f"of memory on the {device.type}, {free / 1e6:,.1f} MB are free: take fewer or smaller ones"
            )
        padded = torch.from_numpy(np.pad(split.images, border))  # black, before normalising
        rows = views.mirrored(padded.permute(0, 3, 1, 2))  # of bytes: a quarter of the work
        normalised = to_input(rows.flatten(0, 1).numpy(), mean, std, device)
        self.mirrored = normalised.permute(0, 2, 3, 1).unflatten(0, rows.shape[:2])
        self.labels = torch.from_numpy(split.labels).to(device)
        self.mean, self.std, self.views, self.device = mean, std, views, device

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self) -> "ResidentSet":
        """What one training run takes batches from."""
        return self

    def start(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The (ids, view_ids) of the epoch that begins."""

    def advance(self) -> None:
        """The next of these batches begins."""

    def batch(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the images `ids` (B,): float32 (B, 3, H, W)."""
        return self.views.crop(self.mirrored, ids, view_ids)
