"""The device, a data set that lives on it, and inference."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from richkd import distributed
from richkd.dataset import Split
from richkd.errors import InputError, one_line
from richkd.views import Views


def start(device: str = "auto", deterministic: bool = False) -> torch.device:
    """The device of this process, which joins the others that torchrun started, if it did.

    `auto` is CUDA where there is one. Deterministic kernels give the same bits again on the same
    device; otherwise cuDNN picks the fastest by trying. Raises InputError for `cuda` without one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is 'cuda': no CUDA device here, use auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    # Filling what is about to be written anyway would cost time and change nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return distributed.start(torch.device(device))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


@contextmanager
def out_of_memory(lower: str) -> Iterator[None]:
    """Where the device's memory runs out within, InputError names the params `lower`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory: lower {lower} ({one_line(error)})") from None


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


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, batch_size: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D), float32, in eval mode.

    `images` are normalised: a tensor (N, 3, H, W), or what `richkd.imagesets.for_inference` gives.
    """
    was_training = model.training
    model.eval()
    # Some networks fail on no images at all: one tells the shapes, and none of its rows is kept.
    inputs = images if len(images) else images.new_zeros(1, *images.shape[1:])
    outputs = []
    with autocast(images.device, precision):
        for batch in inputs.split(batch_size):
            outputs.append(model(batch.contiguous(memory_format=torch.channels_last)))
    model.train(was_training)
    logits, features = zip(*outputs)
    return tuple(torch.cat(parts)[: len(images)].float() for parts in (logits, features))


def predict_logits(
    model: nn.Module, images: Tensor, batch_size: int, precision: str = "fp32"
) -> Tensor:
    """The logits of `predict`, for which several processes share the batches."""
    if distributed.processes() == 1:
        return predict(model, images, batch_size, precision)[0]
    every = torch.arange(len(images), device=images.device).split(batch_size)
    own = torch.cat([every[0][:0], *every[distributed.rank() :: distributed.processes()]])
    logits, _ = predict(model, images[own], batch_size, precision)
    gathered = logits.new_zeros(len(images), logits.shape[1]).index_copy_(0, own, logits)
    return distributed.total(gathered)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def accuracy(logits: Tensor, labels: Tensor, top: int = 1) -> float:
    """Share of the images whose label is among the `top` largest logits."""
    hits = logits.topk(top, dim=1).indices == labels[:, None]
    return hits.any(1).double().mean().item()
