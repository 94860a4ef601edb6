"""The device, a data set that lives on it, and inference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

from richkd.base import distributed
from richkd.base.errors import InputError, one_line


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


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, batch_size: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D), float32, in eval mode.

    `images` are normalised: a tensor (N, 3, H, W), or what `richkd.data.imagesets.for_inference` gives.
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
