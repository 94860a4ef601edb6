"""How training images are varied, and what a network expects of its input.

A random view of an image has a number, its view id, so that the images of a batch follow from two
lists of numbers. There are two sets of views:

`Views` is for small images: pad, crop, flip. A view id stands for (flip, dy, dx): the image is
padded with black by `pad` pixels, cropped at (dy, dx) and then, if flip, mirrored. Pad 4 with flip
gives the 162 views of CIFAR training. A finite set of views is what lets a teacher be a table.

`RandomResizedCrop` is for ImageNet, where the number of crops has no end. Here a view id is the key
of an epoch, and key and image number together give the crop.
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
    """All crops of `height` x `width` images padded by `pad`, and their mirror images if `flip`."""

    def __init__(self, height: int, width: int, pad: int, flip: bool):
        self.height, self.width, self.pad, self.flip = height, width, pad, flip
        self.side = 2 * pad + 1
        self.corners: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return self.side**2 * (2 if self.flip else 1)

    @property
    def described(self) -> dict[str, Any]:
        """The options that tell one set of views from another."""
        return {"pad": self.pad, "flip": self.flip}

    @property
    def center(self) -> int:
        """The view id of the image as it is."""
        return self.pad * self.side + self.pad

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` view ids drawn evenly, int64 (n,), on the generator's device."""
        return torch.randint(len(self), (n,), generator=generator, device=generator.device)

    def mirrored(self, padded: Tensor) -> Tensor:
        """Padded images (N, C, H + 2 pad, W + 2 pad) as `crop` reads them: (F, N, …, …, C).

        With flip F is 2: the mirror images are kept beside the images. That takes twice the memory,
        and a view is then one gather of whole rows of pixels.
        """
        rows = padded.permute(0, 2, 3, 1)
        return torch.stack([rows, rows.flip(2)]) if self.flip else rows.contiguous()[None]

    def crop(self, mirrored: Tensor, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the images `ids` (B,): (B, C, H, W), channels last.

        One gather from strided windows of the set: no loop, no copy of the set. Channels last is
        1.3 times as fast as NCHW for the convolutions of small networks on two cores.
        """
        windows = mirrored.unfold(2, self.height, 1).unfold(3, self.width, 1)
        flipped, dy, dx = self._corners(view_ids.device).index_select(1, view_ids)
        return windows.permute(0, 1, 2, 3, 5, 6, 4)[flipped, ids, dy, dx].permute(0, 3, 1, 2)

    def apply(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """The view `view_ids[i]` of image i: (N, C, H, W) and int64 (N,) to (N, C, H, W).

        Raises ValueError for images of another size than the views.
        """
        if images.shape[2:] != (self.height, self.width):
            raise ValueError(
                f"images are {tuple(images.shape[2:])}, "
                f"the views are of {(self.height, self.width)}"
            )
        ids = torch.arange(len(images), device=images.device)
        padded = F.pad(images, [self.pad] * 4)  # black, before normalising
        return self.crop(self.mirrored(padded), ids, view_ids)

    def _corners(self, device: torch.device) -> Tensor:
        """(flip, dy, dx) of every view in what `mirrored` gives: int64 (3, len(self)).

        A table: the arithmetic would be seven kernels of a GPU for each batch.
        """
        if device not in self.corners:
            views = torch.arange(len(self), device=device)
            flipped, dy, dx = (
                views // self.side**2,
                views // self.side % self.side,
                views % self.side,
            )
            # A mirror image counts from the other side.
            dx = torch.where(flipped > 0, 2 * self.pad - dx, dx)
            self.corners[device] = torch.stack([flipped, dy, dx])
        return self.corners[device]


class Box(NamedTuple):
    """A part of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class RandomResizedCrop:
    """Random crops of an image, resized to `size` x `size`; with `flip` one in two is mirrored.

    `scale` is the least and the largest part of the image's area, `ratio` the same of width to
    height. Crops are drawn as torchvision's transform of this name draws them (Szegedy et al.,
    "Going Deeper with Convolutions", CVPR 2015), but from a counter-based generator: a crop depends
    only on the view id, which stands for seed and epoch, and on the image's number.
    """

    center = -1  # the view id of the centre, without augmentation
    TRIES = 10

    def __init__(self, size: int, scale: Sequence[float], ratio: Sequence[float], flip: bool):
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    @property
    def described(self) -> dict[str, Any]:
        """The options that tell one set of views from another."""
        return {"size": self.size, "scale": self.scale, "ratio": self.ratio, "flip": self.flip}

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` times the view id of the generator's seed, int64 (n,), on the generator's device."""
        return torch.full((n,), generator.initial_seed(), device=generator.device)

    def box(self, view_id: int, image: int, width: int, height: int) -> Box:
        """The crop of image number `image`, which is `width` x `height` pixels.

        Raises ValueError for the view id of the centre, which has no box.
        """
        random = np.random.Generator(np.random.Philox(key=view_id, counter=[0, 0, 0, image]))
        mirrored = self.flip and random.random() < 0.5
        smallest, largest = self.scale
        narrowest, widest = self.ratio
        for _ in range(self.TRIES):
            area = width * height * random.uniform(smallest, largest)
            ratio = math.exp(random.uniform(math.log(narrowest), math.log(widest)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = random.integers([height - h + 1, width - w + 1])
                return Box(int(top), int(left), h, w, mirrored)
        # The image is too long for all of these crops. Take its middle, with a ratio as near to the
        # allowed ones as the image permits.
        w = min(width, round(height * widest))
        h = min(height, round(width / narrowest))
        return Box((height - h) // 2, (width - w) // 2, h, w, mirrored)


class Center(NamedTuple):
    """How an image becomes `size` x `size` pixels for inference.

    resize_mode says which side is resized to `resize` pixels: the `shortest`, as networks on
    ImageNet do, then the middle is taken; the `longest`, then the rest is filled with the grey
    level `fill`, 0 to 255; or both (`squash`), whatever the image's shape.
    """

    resize: int
    size: int
    interpolation: str = "bilinear"
    resize_mode: str = "shortest"
    fill: int = 0

    @classmethod
    def of(cls, views: params.Views) -> "Center | None":
        """The cut for a network trained with `views`; None where images are taken as they are."""
        if isinstance(views, params.ResizedCrops):
            return cls(views.resize, views.size)
        return None


class Preprocessing(NamedTuple):
    """What a network's input is normalised with, and how files are cut for the network.

    mean and std have a number a channel, for pixels in [0, 1]. center is None where images are
    taken as they are.
    """

    mean: Sequence[float]
    std: Sequence[float]
    center: Center | None = None
