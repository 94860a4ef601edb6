"""Work that survives a kill: states on disk that only the experiment that made them may use."""

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
    """What the state follows from: params, the inputs' content, our own code, the machine."""
    code = sorted(Path(__file__).parents[1].rglob("*.py"))
    hashes = {str(path): sha256(path) for path in inputs}
    versions = [version(name) for name in ("torch", "open_clip_torch")]
    # Of several processes another number may go on, as after a machine is lost.
    threads = None if "WORLD_SIZE" in os.environ else torch.get_num_threads()
    machine = [torch.cuda.is_available(), threads]
    return fingerprint(params, hashes, [sha256(path) for path in code], versions, machine)


class Checkpoint:
    """One state dict in one file, with the key of the experiment it belongs to."""

    def __init__(self, name: str, key: str):
        self.path, self.key = FOLDER / f"{name}.pt", key

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state, or None where there is none of this experiment."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError):  # a power cut may leave half a file
            return None
        if state.pop("key") != self.key:
            return None
        tqdm.write(f"going on from {self.path}")
        return state

    def save(self, **state: Any) -> None:
        with replacing(self.path) as part:
            torch.save({"key": self.key, **state}, part)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
