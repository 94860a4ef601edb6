"""A GPU of its own for each job on a machine: a file lock a device, free when its process has ended."""

import os
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

WAIT = 1.0  # seconds between two tries
_held: list[FileLock] = []


def folder() -> Path:
    """Where the locks of this user are, the same for all jobs of a machine."""
    return Path(tempfile.gettempdir()) / f"richkd-devices-{os.getuid()}"


@cache
def take(devices: tuple[str, ...]) -> int:
    """The index of one that no other job of this machine has: ours until the process ends.

    `devices` are names that all jobs know them by. Waits where all are taken.
    """
    folder().mkdir(exist_ok=True)
    told = False
    while True:
        for index, name in enumerate(devices):
            lock = FileLock(folder() / f"{name}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _held.append(lock)
            return index
        if not told:
            tqdm.write(f"all {len(devices)} devices are taken by other jobs: waiting for one")
            told = True
        time.sleep(WAIT)
