"""CIFAR-100-C and CIFAR-10-C, the published corrupted test sets (Hendrycks and Dietterich, 2019).

A file `<corruption>.npy` for each corruption, uint8 (5 N, 32, 32, 3): the N test images in order at
severity 1, then at severity 2, and so on to 5; and `labels.npy` (5 N,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from richkd.base.download import members
from richkd.base.errors import InputError

Array = npt.NDArray[Any]
Loaders = Mapping[str, Callable[[], Array]]  # by file name


class Official(NamedTuple):
    """A published archive, for `download.fetch`."""

    file: str
    md5: str


OFFICIAL = {
    "cifar100": Official("CIFAR-100-C.tar", "md5:11f0ed0f1191edbf9fa23466ae6021d3"),
    "cifar10": Official("CIFAR-10-C.tar", "md5:56bf5dcef84df0e2308c6dcbcbbd8499"),
}


def read_cifar_c(
    path: Path | str, names: Sequence[str], severities: Sequence[int], labels: Array
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Each corruption's name and images uint8 (len(severities) * N, 32, 32, 3), by severity.

    path: the tar, or the folder into which it was unpacked. labels (N,): of the test images in
    order. Raises InputError for a missing file or other labels before anything is yielded, and
    later for a file that is damaged or has another dtype or shape.
    """
    if unknown := set(severities) - set(range(1, 6)):
        raise InputError(f"severities must be 1 to 5, not {min(unknown)}")
    with _loaders(Path(path)) as loaders:
        needed = [*names, "labels"]
        if missing := [f"{name}.npy" for name in needed if f"{name}.npy" not in loaders]:
            raise InputError(f"{path} has no {', '.join(missing)}")
        if not np.array_equal(_load(loaders, "labels", path), np.tile(labels, 5)):
            raise InputError(
                f"{path}: labels.npy must hold the {len(labels)} test labels five times over"
            )
        shape = (5 * len(labels), 32, 32, 3)
        for name in names:
            images = _load(loaders, name, path)
            if images.dtype != np.uint8 or images.shape != shape:
                raise InputError(
                    f"{path}: {name}.npy must be uint8 {shape}, not {images.dtype} {images.shape}"
                )
            blocks = np.split(images, 5)
            yield name, np.concatenate([blocks[severity - 1] for severity in severities])


def _load(loaders: Loaders, name: str, path: Path | str) -> Array:
    try:
        return loaders[f"{name}.npy"]()
    except Exception as error:  # numpy's error depends on where the file ends
        raise InputError(f"{path}: {name}.npy is damaged: {error}") from None


@contextmanager
def _loaders(path: Path) -> Iterator[Loaders]:
    """Functions that load the arrays: mapped from a folder, or read from a tar into memory."""
    if path.is_dir():
        folders = [path, *sorted(path.glob("CIFAR*-C"))]
        folder = next((x for x in folders if (x / "labels.npy").exists()), path)
        yield {
            file.name: partial(np.lib.format.open_memmap, file, mode="r")
            for file in folder.glob("*.npy")
        }
        return
    with members(path) as files:
        yield {Path(name).name: partial(_parse, content) for name, content in files.items()}


def _parse(content: Callable[[], bytes]) -> Array:
    return np.lib.format.read_array(BytesIO(content()), allow_pickle=False)
