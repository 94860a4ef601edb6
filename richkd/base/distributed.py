"""One job in several processes that torchrun started; or in a single process.

Each process works on its own part of every batch. In a single process `processes()` is 1, and
`gather`, `gather_batch`, `total`, `mean` and `average` change nothing.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from richkd.base import devices
from richkd.base.errors import InputError

# Processes that build a cache meet only at its beginning and its end.
TIMEOUT = timedelta(days=1)


def join(device: torch.device) -> torch.device:
    """Join the other processes, if torchrun started several; returns this process's device.

    A single process reserves a GPU that no other job uses (`richkd.base.devices`). Of several
    processes the first uses the machine's first GPU, the second the second, and so on. Raises
    InputError if a machine has fewer CUDA devices than processes, and if torchrun is set to restart
    processes in a way that does not work, or only some of its variables are set.
    """
    _check_environment()
    # Restarted processes get the old addresses: they fail to connect, or wait for ever.
    # github.com/pytorch/pytorch/issues/135712
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise InputError(
            "after a restart these processes would not find each other: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and use the rendezvous c10d, or --max-restarts 0"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        local = os.environ.get("LOCAL_RANK")
        if local is None:
            names = (torch.cuda.get_device_properties(index).uuid for index in range(count))
            device = torch.device("cuda", devices.reserve(tuple(map(str, names))))
        elif int(local) < count:
            device = torch.device("cuda", int(local))
        else:
            raise InputError(
                f"process {int(local) + 1} of this machine finds only {count} CUDA devices: "
                "start as many as there are, or set runtime.device to cpu"
            )
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if sys.platform == "linux":  # end with torchrun, if torchrun is killed
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device, timeout=TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
    return device


def _check_environment() -> None:
    """InputError if the variables that torchrun sets are not there together, or are no numbers."""
    given = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if not given:
        return
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(
                f"{given[0]} is set and {name} is not: start several processes with torchrun or "
                f"RICHKD_PROCESSES; for a single one unset {' and '.join(given)}"
            )
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not re.fullmatch("[0-9]{1,5}", value):
            raise InputError(f"{name} is {value[:20]!r}: must be a number of at most five digits")
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    if rank >= world:
        raise InputError(f"RANK is {rank}: must be below WORLD_SIZE, {world}")


def processes() -> int:
    """How many processes share the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0. Process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Wait until every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over the processes, in place."""
    return total(tensor).div_(processes())


def gather(rows: Tensor) -> Tensor:
    """The rows (B, ...) of every process, in order of rank: (processes · B, ...)."""
    if processes() == 1:
        return rows
    every = rows.new_zeros(processes(), *rows.shape)
    every[rank()] = rows
    return total(every).flatten(0, 1)


def gather_batch(rows: Tensor) -> Tensor:
    """As `gather`, and gradients reach this process's rows.

    For a loss that relates the images of a batch to each other: every process computes the loss of
    the whole batch. Gradients are averaged over the processes afterwards, and those of a process
    come from its own rows alone, so they are multiplied by the number of processes here.
    """
    gathered: Tensor = _GatherBatch.apply(rows) if processes() > 1 else rows
    return gathered


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.chunk(processes())[rank()] * processes()


def average(tensors: Sequence[Tensor]) -> None:
    """The mean of each tensor over the processes, in place. All tensors travel in one message."""
    if processes() == 1:
        return
    flat = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))
