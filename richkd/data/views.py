"""Augmentations whose every outcome has a number, the view id.

`Views` are those of small images: pad, crop, flip. A view id stands for (flip, dy, dx): the image is
padded with black by `pad` pixels, cropped at (dy, dx) and then, if flip, mirrored. Pad 4 with flip
gives the 162 views of CIFAR training. A finite set of views is what lets a teacher be a table.

`RandomResizedCrop` is ImageNet's, of which there is no end: there a view id is the key of an epoch,
from which each image's crop follows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from richkd import params


class Views:
    """All crops of `height` x `width` images padded by `pad`, and their mirrors if `flip`."""

    def __init__(self, height: int, width: int, pad: int, flip: bool):
        self.height, self.width, self.pad, self.flip = height, width, pad, flip
        self.side = 2 * pad + 1

    def __len__(self) -> int:
        return self.side**2 * (2 if self.flip else 1)

    @property
    def described(self) -> dict[str, Any]:
        """What tells this set from another."""
        return {"pad": self.pad, "flip": self.flip}

    @property
    def center(self) -> int:
        """The id of the image as it is."""
        return self.pad * self.side + self.pad

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` view ids drawn evenly, int64 (n,), on the generator's device."""
        return torch.randint(len(self), (n,), generator=generator, device=generator.device)

    def mirrored(self, padded: Tensor) -> Tensor:
        """What `crop` reads, of padded images (N, C, H + 2 pad, W + 2 pad): (F, N, ..., C).

        F is 2 where there are mirrors, which are held beside the images: twice the memory, and a
        view is one gather of whole pixel rows.
        """
        rows = padded.permute(0, 2, 3, 1)
        return torch.stack([rows, rows.flip(2)]) if self.flip else rows.contiguous()[None]

    def crop(self, mirrored: Tensor, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the images `ids` (B,): (B, C, H, W), channels last.

        One gather from strided windows of the set: no loop, no copy of the set. Channels last is
        1.3 times as fast as NCHW for the convolutions of small networks on two cores.
        """
        windows = mirrored.unfold(2, self.height, 1).unfold(3, self.width, 1)
        flipped, dy, dx = self._split(view_ids)
        dx = torch.where(flipped > 0, 2 * self.pad - dx, dx)  # a mirror counts from the other side
        return windows.permute(0, 1, 2, 3, 5, 6, 4)[flipped, ids, dy, dx].permute(0, 3, 1, 2)

    def apply(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """The view `view_ids[i]` of image i: (N, C, H, W) and int64 (N,) to (N, C, H, W).

        Raises ValueError for images of another size.
        """
        if images.shape[2:] != (self.height, self.width):
            raise ValueError(
                f"images are {tuple(images.shape[2:])}, the views are of {(self.height, self.width)}"
            )
        ids = torch.arange(len(images), device=images.device)
        padded = F.pad(images, [self.pad] * 4)  # black, before normalising
        return self.crop(self.mirrored(padded), ids, view_ids)

    def _split(self, view_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = view_ids // self.side
        return rows // self.side, rows % self.side, view_ids % self.side


class Box(NamedTuple):
    """A part of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class RandomResizedCrop:
    """Crops of `scale` of the area and of width to height within `ratio`, mirrored or not.

    As torchvision's transform of that name draws them (Szegedy et al., "Going Deeper with
    Convolutions", CVPR 2015), but from a counter-based generator: a crop follows from the view id,
    which stands for seed and epoch, and the image's number alone.
    """

    center = -1  # the view id of no augmentation
    TRIES = 10

    def __init__(self, size: int, scale: Sequence[float], ratio: Sequence[float], flip: bool):
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    @property
    def described(self) -> dict[str, Any]:
        """What tells this set from another."""
        return {"size": self.size, "scale": self.scale, "ratio": self.ratio, "flip": self.flip}

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """The view id that the generator's seed stands for, int64 (n,), on its device."""
        return torch.full((n,), generator.initial_seed(), device=generator.device)

    def box(self, view_id: int, image: int, width: int, height: int) -> Box:
        """The crop of image number `image` of this size; of the centre, ValueError."""
        random = np.random.Generator(np.random.Philox(key=view_id, counter=[0, 0, 0, image]))
        mirrored = self.flip and random.random() < 0.5
        for _ in range(self.TRIES):
            area = width * height * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = random.integers([height - h + 1, width - w + 1])
                return Box(int(top), int(left), h, w, mirrored)
        # None fits into an image so long: the middle, as near to the allowed ratios as it can be.
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return Box((height - h) // 2, (width - w) // 2, h, w, mirrored)


class Center(NamedTuple):
    """How an image is cut for inference: the shorter side resized, the middle taken."""

    resize: int
    size: int
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, views: params.Views) -> "Center | None":
        """That of a network trained with these views; None where images are taken as they are."""
        if isinstance(views, params.ResizedCrops):
            return cls(views.resize, views.size)
        return None
