"""The choice of the device, and running a model on images."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from richkd.base import distributed, memory
from richkd.base.errors import InputError, one_line

# What torch says where memory on the CPU runs out, where a size has no place in 64 bits, or where a
# CUDA graph gets no memory. It has no exception of its own for these.
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "calculation overflowed",
    "CUDA error: out of memory",  # where a graph gets no memory, and from libraries
)


# The most threads of `predict_side_by_side`: each holds a batch and its activations in memory.
WORKERS = 4


class Images(Protocol):
    """Normalised images for a model: a tensor (N, 3, H, W), or an object with these methods.

    `richkd.data.imagesets` has such objects for images that do not lie in memory.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, ids: Tensor | slice, /) -> "Images": ...
    def new_zeros(self, *shape: int) -> Tensor: ...
    def split(self, batch_size: int, /) -> Iterable[Tensor]: ...


def pick_device(device: str = "auto", deterministic: bool = False) -> torch.device:
    """The device of this process, and torch's settings for it.

    `auto` is CUDA if there is a CUDA device, else the CPU. With `deterministic` the same device
    gives the same bits again; without it cuDNN tries its kernels and takes the fastest. If torchrun
    started several processes, this one joins the others (`richkd.base.distributed.join`). Raises
    InputError for `cuda` without a CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is 'cuda': no CUDA device here, use auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    # Memory that is about to be written need not be filled before: that would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return distributed.join(torch.device(device))


def free_memory(device: torch.device) -> int:
    """The free memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory.available()


@contextmanager
def out_of_memory(lower: str) -> Iterator[None]:
    """If the memory of the device or of the CPU runs out in the block, raise InputError.

    `lower` says which params take less memory when they are lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # of numpy; of torch
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            part in str(error) for part in NO_MEMORY
        ):
            raise
        raise InputError(f"out of memory: lower {lower} ({one_line(error, 120)})") from None


def divergence(model: nn.Module, loss: float) -> str | None:
    """What is not finite, the loss or the weights; None if both are.

    The loss of the last step says nothing about the weights that the step left.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    finite = torch.stack([x.isfinite().all() for x in model.state_dict().values()]).all()
    return None if finite else "the weights are not finite"


@torch.inference_mode()
def predict(
    model: nn.Module, images: Images, batch_size: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D), float32, of the model in eval mode.

    The model is left in the mode in which it was.
    """
    was_training = model.training
    model.eval()
    # Some networks fail if there are no images. One black image then tells the widths C and D; its
    # row is cut off below.
    inputs = images if len(images) else images.new_zeros(1, *images.shape[1:])
    outputs = []
    with autocast(images.device, precision):
        for batch in inputs.split(batch_size):
            outputs.append(model(batch.contiguous(memory_format=torch.channels_last)))
    model.train(was_training)
    logits, features = (torch.cat(parts)[: len(images)].float() for parts in zip(*outputs))
    return logits, features


def predict_side_by_side(
    models: Sequence[nn.Module], images: Images, batch_size: int, precision: str = "fp32"
) -> Tensor:
    """The logits of `predict_logits` for each model, (models, N, C).

    On a CPU, Python threads share models and batches: two operations of a small network at the same
    time, in one thread each, are faster than one operation after the other in two threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads, WORKERS)
    alone = images.device.type == "cpu" and distributed.processes() == 1
    if not alone or workers == 1 or not len(images):
        return torch.stack([predict_logits(x, images, batch_size, precision) for x in models])

    def answer(model: nn.Module, batch: Tensor) -> Tensor:
        torch.set_num_threads(threads // workers)  # for this Python thread alone, except for MKL
        return predict(model, batch, batch_size, precision)[0]

    parts = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for several in images.split(workers * batch_size):
                batches = several.split(batch_size)
                answers = [[pool.submit(answer, x, batch) for batch in batches] for x in models]
                rows = [torch.cat([found.result() for found in row]) for row in answers]
                parts.append(torch.stack(rows))
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts, 1)


def predict_logits(
    model: nn.Module, images: Images, batch_size: int, precision: str = "fp32"
) -> Tensor:
    """The logits of `predict`; several processes share the batches."""
    if distributed.processes() == 1:
        return predict(model, images, batch_size, precision)[0]
    every = torch.arange(len(images), device=images.device).split(batch_size)
    own = torch.cat([every[0][:0], *every[distributed.rank() :: distributed.processes()]])
    logits, _ = predict(model, images[own], batch_size, precision)
    gathered = logits.new_zeros(len(images), logits.shape[1]).index_copy_(0, own, logits)
    return distributed.total(gathered)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which the model runs in bfloat16, if `precision` is bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def accuracy(logits: Tensor, labels: Tensor, top: int = 1) -> float:
    """The share of images whose label is among the `top` largest logits.

    logits (N, C); labels int64 (N,). Of equal logits the first is the larger, as for argmax. A
    label whose logit is NaN is not among them.
    """
    own = logits.gather(1, labels[:, None])
    first = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & first)
    return (ahead.sum(1) < top).double().mean().item()
