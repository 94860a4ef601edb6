"""The finite augmentation of small images: pad, crop, flip, each outcome with a number.

A view id stands for (flip, dy, dx): the image is padded with black by `pad` pixels, cropped at
(dy, dx) and then, if flip, mirrored. Pad 4 with flip gives the 162 views of CIFAR training.
A finite set of views is what lets a teacher be a table.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class Views:
    """All crops of `height` x `width` images padded by `pad`, and their mirrors if `flip`."""

    def __init__(self, height: int, width: int, pad: int, flip: bool):
        self.height, self.width, self.pad, self.flip = height, width, pad, flip
        self.side = 2 * pad + 1

    def __len__(self) -> int:
        return self.side**2 * (2 if self.flip else 1)

    @property
    def center(self) -> int:
        """The id of the image as it is."""
        return self.pad * self.side + self.pad

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` view ids drawn evenly, int64 (n,), on the generator's device."""
        return torch.randint(len(self), (n,), generator=generator, device=generator.device)

    def pad_images(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H + 2 pad, W + 2 pad), the border zero: black before normalising."""
        return F.pad(images, [self.pad] * 4)

    def crop(self, padded: Tensor, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the rows `ids` (B,) of a padded set: (B, C, H, W).

        One gather from a strided window view of the set: no loop, no copy of the set.
        """
        windows = padded.unfold(2, self.height, 1).unfold(3, self.width, 1)
        flipped, dy, dx = self._split(view_ids)
        crops = windows[ids, :, dy, dx]
        if not self.flip:
            return crops
        return torch.where(flipped[:, None, None, None], crops.flip(-1), crops)

    def apply(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """The view `view_ids[i]` of image i: (N, C, H, W) and int64 (N,) to (N, C, H, W).

        Raises ValueError for images of another size.
        """
        if images.shape[2:] != (self.height, self.width):
            raise ValueError(
                f"images are {tuple(images.shape[2:])}, the views are of {(self.height, self.width)}"
            )
        ids = torch.arange(len(images), device=images.device)
        return self.crop(self.pad_images(images), ids, view_ids)

    def _split(self, view_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = view_ids // self.side
        return rows >= self.side, rows % self.side, view_ids % self.side
