"""A network with its preprocessing and its temperature: from pixels to probabilities."""

import torch
from torch import Tensor, nn

from richkd.base.errors import InputError
from richkd.data.views import Center, Preprocessing

PIXELS = {"uint8": torch.uint8, "float32": torch.float32}


class Packaged(nn.Module):
    """Takes `pixels` (N, 3, H, W) in RGB: uint8 from 0 to 255, or float32 from 0 to 1.

    Returns logits and probabilities, float32 (N, C) each; the probabilities are
    softmax(logits / temperature). Where `preprocessing` says how images are cut, they may have any
    height and width; otherwise they must have the size that the network was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, temperature: float | None):
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)
        center = preprocessing.center
        self.cut = Cut(center) if center else nn.Identity()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))
        self.temperature = temperature or 1.0

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        levels = pixels if pixels.is_floating_point() else pixels.float() / 255
        logits = self.model((self.cut(levels) - self.mean) / self.std).logits
        return logits, torch.softmax(logits / self.temperature, 1)


class Cut(nn.Module):
    """`richkd.data.imagesets.cut_center` on float32 pixels, by two products of matrices.

    Runtimes differ in how they resize; a product of matrices is the same everywhere. The cut pixels
    keep their fractions, while the pipeline rounds cut pixels to one of 256 levels.
    """

    def __init__(self, center: Center):
        super().__init__()
        if (
            center.resize_mode not in ("shortest", "squash")
            or center.interpolation not in ("bilinear", "bicubic")
            or center.resize < center.size
        ):
            raise InputError(
                f"images are cut by {center.resize_mode}, {center.interpolation}, from "
                f"{center.resize} to {center.size} pixels: export knows shortest and squash, "
                "bilinear and bicubic, to no larger size"
            )
        self.center = center

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in pixels.shape[2:])
        shorter = torch.minimum(height, width)
        by_mode = [height, width] if self.center.resize_mode == "squash" else [shorter, shorter]
        rows = self.weights(pixels.shape[2], height, by_mode[0])
        columns = self.weights(pixels.shape[3], width, by_mode[1])
        return (rows @ pixels @ columns.T).clamp(0, 1)

    def weights(self, pixels: int, length: Tensor, unit: Tensor) -> Tensor:
        """The share of each pixel of one side in each pixel of the cut: (size, pixels).

        `pixels` is the side's length, and `length` the same as a tensor. `unit` is the length that
        is resized to `resize` pixels: the shorter side, or with squash this side.
        """
        resize, size = self.center.resize, self.center.size
        resized = resize * length // unit
        scale = length / resized
        first = torch.round((resized - size) / 2)  # the first pixel of the cut
        middles = (first + torch.arange(size) + 0.5) * scale
        # To make an image smaller, the kernel is widened to cover more pixels (antialiasing). To
        # make an image larger, the kernel keeps its width.
        distances = (torch.arange(pixels) + 0.5 - middles[:, None]) / scale.clamp(min=1.0)
        shares = self.kernel(distances.abs())
        return shares / shares.sum(1, keepdim=True)

    def kernel(self, x: Tensor) -> Tensor:
        """The share of a pixel at the distance `x`: a triangle, or Keys's cubic with a = -0.5."""
        if self.center.interpolation == "bilinear":
            return (1 - x).clamp(min=0.0)
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
