"""Checkpoints of a killed stage, which only the same experiment may go on from."""

import hashlib
import os
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import torch
from tqdm import tqdm

from richkd.base.files import fingerprint, replacing, sha256
from richkd.base.kept import FOLDER

DIGEST = 64  # bytes at the end of a checkpoint: the SHA-256 of all before, in hexadecimal digits
PIECE = 2**20  # bytes hashed at once
# Between two checkpoints of a run. A GPU is idle while a checkpoint is written: one for each epoch
# would take half a minute of a run of two minutes.
SECONDS = 20.0


def key(params: Any, inputs: Iterable[Path | str]) -> str:
    """One hash of all that a checkpoint follows from.

    That is: params, the content of the inputs, all our code, two libraries' versions, the machine.
    """
    code = sorted(Path(__file__).parents[1].rglob("*.py"))
    hashes = {str(path): sha256(path) for path in inputs}
    versions = [version(name) for name in ("torch", "open_clip_torch")]
    # A job of several processes may go on with fewer of them, with another number of threads each.
    threads = None if "WORLD_SIZE" in os.environ else torch.get_num_threads()
    machine = [torch.cuda.is_available(), threads]
    return fingerprint(params, hashes, [sha256(path) for path in code], versions, machine)


class Checkpoint:
    """A dict of tensors and numbers in one file, with the `key` of its experiment.

    The file ends with a hash of its content. Torch reads the file as if the hash were not there.
    """

    def __init__(self, name: str, key: str) -> None:
        self.path, self.key = FOLDER / f"{name}.pt", key
        self.saved: float | None = None  # when this process last saved

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state; None if there is no checkpoint of this experiment, or a damaged one."""
        if not self.path.exists():
            return None
        if not _whole(self.path):
            tqdm.write(f"{self.path} is damaged: starting anew")
            return None
        state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        if state.pop("key") != self.key:
            return None
        tqdm.write(f"continuing from {self.path}")
        return state

    def due(self) -> bool:
        """Whether this process has not saved anything yet, or not for `SECONDS`."""
        return self.saved is None or time.monotonic() - self.saved >= SECONDS

    def save(self, **state: Any) -> None:
        """Write the state; an older one of the same name is replaced."""
        with replacing(self.path) as part, open(part, "wb") as file:
            hashing = _Hashing(file)
            try:
                torch.save({"key": self.key, **state}, cast(IO[bytes], hashing))
            except RuntimeError as error:
                # Where the file gives an error, torch raises one of its own, which hides the cause.
                cause = error.__context__
                raise cause if isinstance(cause, OSError) else error from None
            file.write(hashing.hash.hexdigest().encode())
        self.saved = time.monotonic()


class _Hashing:
    """A file for torch.save that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _whole(path: Path) -> bool:
    """Whether the file ends with the hash of its content."""
    found, left = hashlib.sha256(), path.stat().st_size - DIGEST
    with open(path, "rb") as file:
        while left > 0:
            piece = file.read(min(PIECE, left))
            found.update(piece)
            left -= len(piece)
        return file.read() == found.hexdigest().encode()
