"""Archives in the layout of CIFAR's, pickled by Python 2 or by a later Python."""

import io
import pickle
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from richkd.data.cifar import Archive


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did: every string is bytes, every bool a number."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)

    def save_string(self: Any, text: str | bytes) -> None:
        text = text.encode() if isinstance(text, str) else text
        size = len(text)
        self.write(b"U" + struct.pack("B", size) if size < 256 else b"T" + struct.pack("<i", size))
        self.write(text)

    def save_flag(self: Any, flag: bool) -> None:
        self.save_long(int(flag))

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_flag


def dumps(content: Any, protocol: int) -> bytes:
    if protocol > 2:
        return pickle.dumps(content, protocol)
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def official_contents(archive: Archive) -> dict[str, Any]:
    """All images in the layout of an official archive; the bytes of an image are its label."""
    rng = np.random.default_rng(0)
    contents: dict[str, Any] = {}
    for members, per_class in (
        (archive.train, archive.train_per_class), (archive.test, archive.test_per_class),
    ):  # fmt: skip
        labels = rng.permutation(np.arange(per_class * archive.classes) % archive.classes)
        for member, part in zip(members, np.split(labels, len(members))):
            data = np.repeat(part.astype(np.uint8)[:, None], 3072, axis=1)
            contents[member] = {"data": data, archive.labels: part.tolist()}
            if archive.coarse:  # a superclass has five classes
                contents[member][archive.coarse[0]] = (part // 5).tolist()
    contents[archive.meta] = {archive.names: [f"class_{i}" for i in range(archive.classes)]}
    if archive.coarse:
        _, names, count = archive.coarse
        contents[archive.meta][names] = [f"superclass_{i}" for i in range(count)]
    return contents


def write(path: Path, contents: Mapping[str, Any], protocol: int = 2) -> Path:
    """A tar.gz of these files: {name: bytes, or an object to pickle}."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else dumps(content, protocol)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
