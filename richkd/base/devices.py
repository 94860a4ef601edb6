"""A GPU of its own for each job on a machine.

A job locks a file named after the GPU. The system frees the lock when the process ends.
"""

import os
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

WAIT = 1.0  # seconds between two tries
_locks: list[FileLock] = []  # a lock that nothing refers to would be freed


def lock_folder() -> Path:
    """The folder of this user's locks, the same for all jobs of a machine."""
    return Path(tempfile.gettempdir()) / f"richkd-devices-{os.getuid()}"


@cache
def reserve(devices: tuple[str, ...]) -> int:
    """Reserve one of `devices` until this process ends; returns its index.

    All jobs of a machine must give a device the same name. While every device is reserved by
    another job, this function waits.
    """
    lock_folder().mkdir(exist_ok=True)
    announced = False
    while True:
        for index, name in enumerate(devices):
            lock = FileLock(lock_folder() / f"{name}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _locks.append(lock)
            return index
        if not announced:
            tqdm.write(f"all {len(devices)} devices are used by other jobs: waiting for one")
            announced = True
        time.sleep(WAIT)
