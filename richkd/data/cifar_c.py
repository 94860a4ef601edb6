"""CIFAR-100-C and CIFAR-10-C, the published corrupted test sets (Hendrycks and Dietterich, 2019).

One `<corruption>.npy` a corruption, uint8 (5 N, 32, 32, 3): the N test images in order at severity
1, then at severity 2, to 5; and `labels.npy` (5 N,).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from richkd.base.download import members
from richkd.base.errors import InputError


class Official(NamedTuple):
    """What `download.fetch` needs."""

    file: str
    md5: str


OFFICIAL = {
    "cifar100": Official("CIFAR-100-C.tar", "md5:11f0ed0f1191edbf9fa23466ae6021d3"),
    "cifar10": Official("CIFAR-10-C.tar", "md5:56bf5dcef84df0e2308c6dcbcbbd8499"),
}


def read(
    path: Path | str, names: Sequence[str], severities: Sequence[int], labels: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Each corruption's name and images uint8 (len(severities) * N, 32, 32, 3), by severity.

    path: the tar, or the folder it was unpacked in. labels: those of the N test images in order.
    Raises InputError, before it yields anything, where a file is missing or the labels are others,
    and later where a file is not whole or not of that dtype and shape.
    """
    if unknown := set(severities) - set(range(1, 6)):
        raise InputError(f"severities must be 1 to 5, not {min(unknown)}")
    with _arrays(Path(path)) as arrays:
        needed = [*names, "labels"]
        if missing := [f"{name}.npy" for name in needed if f"{name}.npy" not in arrays]:
            raise InputError(f"{path} has no {', '.join(missing)}")

        def load(name: str) -> np.ndarray:
            try:
                return arrays[f"{name}.npy"]()
            except Exception as error:  # what numpy raises depends on where the file ends
                raise InputError(f"{path}: {name}.npy is not whole: {error}") from None

        if not np.array_equal(load("labels"), np.tile(labels, 5)):
            raise InputError(
                f"{path}: labels.npy must hold the {len(labels)} test labels five times over"
            )
        shape = (5 * len(labels), 32, 32, 3)
        for name in names:
            images = load(name)
            if images.dtype != np.uint8 or images.shape != shape:
                raise InputError(
                    f"{path}: {name}.npy must be uint8 {shape}, not {images.dtype} {images.shape}"
                )
            blocks = np.split(images, 5)
            yield name, np.concatenate([blocks[severity - 1] for severity in severities])


@contextmanager
def _arrays(path: Path) -> Iterator[dict[str, Callable[[], np.ndarray]]]:
    """By file name, what loads each array: from a folder mapped, from a tar read into memory."""
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


def _parse(content: Callable[[], bytes]) -> np.ndarray:
    return np.lib.format.read_array(BytesIO(content()), allow_pickle=False)
