"""Files that appear whole or not at all, and hashes of their content."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from richkd.base.errors import InputError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move that file to `path` when the block ends well.

    Raises InputError if the file cannot be written. After an error the temporary file is gone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    # On a full disk the error depends on the library: torch raises RuntimeError.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path | str, data: Any) -> None:
    """Write indented JSON. ValueError for NaN and infinity, which DVC's metrics cannot hold."""
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_array(path: Path | str, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file."""
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, array)


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. InputError if the file is damaged."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not whole: {error}") from None


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """One SHA-256 of everything in `parts`, which JSON must be able to hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
