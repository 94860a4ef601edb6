"""Checkpoints of a killed stage, which only the same experiment may go on from."""

import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tqdm import tqdm

from richkd.base.files import fingerprint, replacing, sha256

FOLDER = Path(".resume")


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
    """A dict of tensors and numbers in one file, with the `key` of its experiment."""

    def __init__(self, name: str, key: str) -> None:
        self.path, self.key = FOLDER / f"{name}.pt", key

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state; None if there is no whole checkpoint of this experiment."""
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError):  # half a file, after a power cut
            return None
        if state.pop("key") != self.key:
            return None
        tqdm.write(f"going on from {self.path}")
        return state

    def save(self, **state: Any) -> None:
        """Write the state; an older one of the same name is replaced."""
        # Through Python's file, whose error says what the system says; torch's own does not.
        with replacing(self.path) as part, open(part, "wb") as file:
            torch.save({"key": self.key, **state}, file)

    def remove(self) -> None:
        """Delete the file, once the work is done."""
        self.path.unlink(missing_ok=True)
