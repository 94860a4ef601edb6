"""Several processes that share one job, where torchrun started them; on its own, a process is all.

A process works on its own part of each batch. `start` joins the others; before it, and where there
are none, `processes()` is 1 and what is gathered or averaged comes back as it is.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from richkd.base import devices
from richkd.base.errors import InputError

PATIENCE = timedelta(days=1)  # building a cache, processes meet at its ends alone


def start(device: torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did; this one's device of that type.

    On its own a process takes a GPU that no other has (`richkd.base.devices`); those that torchrun started
    take all from the first on. Raises InputError where a machine has fewer CUDA devices than these, or
    where torchrun would start them again with the addresses of those before.
    """
    # github.com/pytorch/pytorch/issues/135712: they fail to connect, or wait for ever
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
            device = torch.device("cuda", devices.take(tuple(map(str, names))))
        elif int(local) < count:
            device = torch.device("cuda", int(local))
        else:
            raise InputError(
                f"process {int(local) + 1} of this machine finds only {count} CUDA devices: start as "
                "many as there are, or set runtime.device to cpu"
            )
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if sys.platform == "linux":  # not to write on where the one that started them was killed
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device, timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    return device


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Of this process, from 0; the one of rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Until all have come here."""
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


def average(tensors: Sequence[Tensor]) -> None:
    """Each one's mean over the processes, in place; all of them in one message."""
    if processes() == 1:
        return
    flat = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))
