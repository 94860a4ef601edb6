"""Files that appear whole or not at all, and fingerprints of what they hold."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from richkd.base.errors import InputError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path beside `path` to write to; moves it to `path` if the block ends well.

    Raises InputError where it cannot be written, and leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    # What a full disk raises depends on who writes: torch says RuntimeError.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path | str, data: Any) -> None:
    """Indented JSON; ValueError for NaN and infinity, which DVC's metrics cannot hold."""
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_array(path: Path | str, array: np.ndarray) -> None:
    """As `.npy`."""
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, array)


def read_json(path: Path | str) -> Any:
    """InputError where the file is not whole."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not whole: {error}") from None


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """One hash of anything JSON can say: params, other hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
