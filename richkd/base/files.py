"""Files that appear whole or not at all, and hashes of their content."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from safetensors import SafetensorError

from richkd.base.errors import InputError, one_line

# The folders that stages write to. Files lie in them, or up to two folders below.
WRITTEN = (
    ".resume", "cache", "data", "fingerprints", "metrics", "models", "predictions", "report",
)  # fmt: skip


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move that file to `path` when the block ends well.

    Raises InputError if the file cannot be written. After an error the temporary file is gone.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors makes files that their owner alone may read
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} could not be written: {_reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """For a file that is written in place: an error of the system names the file.

    What works on an open file alone, such as `os.pwrite`, says only what is wrong.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} could not be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The system's own words, for example that no space is left, where they are known.

    torch raises RuntimeError where the system's error was, while it handles that.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    number = re.search(r"os error (\d+)", str(error))  # as safetensors says it
    return os.strerror(int(number[1])) if number else one_line(error)


def remove_unfinished() -> None:
    """Delete the temporary files of killed processes of this machine, and print their number.

    They lie in the folders that stages write to, below the working directory. Those of a process
    that runs are left alone.
    """
    removed = []
    for folder in WRITTEN:
        for depth in ("", "*/", "*/*/"):
            for part in Path(folder).glob(f"{depth}.*.{_host()}.*.part"):
                pid = part.name.split(".")[-2]
                if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                    part.unlink(missing_ok=True)  # another process may remove it at the same time
                    removed.append(part)
    if removed:
        print(f"unfinished files of killed runs are removed: {len(removed)}, {removed[0]} first")


def _host() -> str:
    """This machine's name, without the dots: machines may share a disk, and count pids alike."""
    return platform.node().replace(".", "-")


def write_json(path: Path | str, data: Any) -> None:
    """Write indented JSON. InputError for NaN and infinity, which DVC's metrics cannot hold."""
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except ValueError:
        raise InputError(f"{path} is not written: it would hold NaN or infinity") from None
    with replacing(path) as part:
        part.write_text(text + "\n")


def write_array(path: Path | str, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file."""
    array = np.asarray(array, order="C")
    header = np.lib.format.header_data_from_array_1_0(array)
    with replacing(path) as part, open(part, "wb") as file:
        # np.save would write with C's file, and says nothing where its last bytes do not fit.
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """One SHA-256 of everything in `parts`, which JSON must be able to hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
