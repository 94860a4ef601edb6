"""Hostile archives and pickles through `prepare`: one line, nothing is run, nothing endless.

The archive is a small one in CIFAR-10's layout, so that a thousand of them take minutes.
"""

import gzip
import io
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import dumps, official_contents
from campaign.forked import Ended, Limits, forked, stage
from campaign.workspace import Faults, dump_params, smoke

from richkd.base.files import sha256
from richkd.data import cifar

pytestmark = pytest.mark.slow

SMALL = cifar.ARCHIVES["cifar10"]._replace(classes=2, train_per_class=20, test_per_class=5)
LIMITS = Limits(seconds=20, memory=1_000_000_000)
META, TEST = SMALL.meta, SMALL.test[0]


class Runs:
    """An object that makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("unpickled"),)


def tar_of(contents: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sound() -> dict[str, bytes]:
    return {name: dumps(x, 2) for name, x in official_contents(SMALL).items()}


def with_bytes(rng: random.Random) -> bytes:
    """Bytes changed, cut or moved in a tar, before or after it is compressed."""
    data = bytearray(tar_of(sound()))
    if rng.random() < 0.5:  # where the headers are
        at = 512 * rng.randrange(len(data) // 512)
        for _ in range(rng.choice([1, 4])):
            data[at + rng.randrange(512)] = rng.choice(
                [0, 32, 48, 55, 128, 255, rng.randrange(256)]
            )
    else:
        del data[rng.randrange(len(data)) :]
    packed = bytearray(gzip.compress(bytes(data), 1))
    if rng.random() < 0.4:
        packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    return bytes(packed)


def with_header(rng: random.Random) -> bytes:
    """A member whose header, with the right checksum, tells something impossible."""
    info = tarfile.TarInfo(
        rng.choice([META, "x", "a\0b", "/etc/x", "../x", "x/" * 200, "\udcff", ""])
    )
    info.type = bytes([rng.choice(b"01234567LKSxgDMNVZ\0")])
    info.linkname = rng.choice(["", META, "../../x", "/etc/passwd", "x\0y", 300 * "l"])
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
    sizes = [b"00000000000\0", b"77777777777\0", b"\x80" + 3 * b"\0" + 8 * b"\xff", b"\xff" * 12]
    block[124:136] = rng.choice([*sizes, b"-1234567890\0", b"9".ljust(12, b"\0")])
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return gzip.compress(bytes(block) + rng.choice([1, 3000]) * rng.choice([b"", bytes(block)]), 1)


def with_many_names(rng: random.Random) -> bytes:
    """Thousands of headers that only announce a long name, or a pax header."""
    kind = rng.choice([tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 20
    one = info.tobuf(tarfile.USTAR_FORMAT) + b"20 path=abcdefghijk\n".ljust(512, b"\0")
    return gzip.compress(rng.choice([500, 3000, 50_000]) * one, 1)


def with_bomb(rng: random.Random) -> bytes:
    """Members of billions of zeros, in a small file."""
    pieces = rng.choice([1, 1, 150])
    info = tarfile.TarInfo(rng.choice([META, TEST, "more"]))
    info.size = rng.choice([1, 1, 1000]) * pieces * 10**7
    header = info.tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(header, 1) + pieces * gzip.compress(bytes(10**7), 9)


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return b"\x80\x02" + opening * levels + b"N" + closing * levels + b"."


def with_pickle(rng: random.Random) -> bytes:
    """A member that is another pickle."""
    itself: list[Any] = []
    itself.append(itself)
    numbers = {"data": np.zeros((10, 3072), np.uint8), "labels": [0, 1] * 5}
    others: list[Any] = [
        Runs(), [Runs()], {"label_names": [Runs(), "b"]}, {"label_names": itself}, itself,
        {"label_names": [["a"], "b"]}, {"label_names": [itself, "b"]}, {(1, (2, 3)): 1},
        {"label_names": [b"\xff", "\x1b[31m"]}, {"label_names": ["a\nb", "c" * 10**6]},
        {**numbers, "labels": np.array(3)}, {**numbers, "data": np.array(3, np.uint8)},
        {**numbers, "labels": [True] * 10}, {**numbers, "labels": [10**30] * 10},
        {**numbers, "labels": np.zeros((10, 2))}, {**numbers, "labels": np.zeros(10)},
        {**numbers, "data": np.zeros((10, 3072), object)}, {**numbers, "labels": [float("nan")]},
        {**numbers, "data": np.zeros((0, 3072), np.uint8)}, {**numbers, "labels": "0101010101"},
        3, None, "text", [], {}, b"x" * 10**6, {"data": itself},
    ]  # fmt: skip
    texts = [
        nested(100_000, b"]", b"a"), nested(100_000, b"(", b"t"), nested(3000, b"(", b"t"),
        b"\x80\x02\x8b\xff\xff\xff\x7f", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f", b"(((((((", b"",
        b"\x80\xff.", b"cposix\nsystem\n(S'touch unpickled'\ntR.", b"\x80\x02}q\x00h\x00s.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01bt.",
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", b"\x80\x02cnumpy\ndtype\n(U\x03V99tR.",
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aU\x03hextR.", b"I" + b"9" * 6000 + b"\n.",
    ]  # fmt: skip
    text = rng.choice(texts) if rng.random() < 0.5 else pickle.dumps(rng.choice(others), 2)
    if rng.random() < 0.2:
        changed = bytearray(sound()[META])
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        text = bytes(changed)
    contents = sound()
    contents[rng.choice([META, META, TEST, SMALL.train[0]])] = text
    return gzip.compress(tar_of(contents), 1)


KINDS = [with_bytes, with_header, with_many_names, with_bomb, with_pickle, with_pickle]


def prepare(folder: Path, archive: bytes) -> Ended:
    """What the stage `prepare` does with the archive."""

    def action() -> None:
        cifar.ARCHIVES["cifar10"] = SMALL
        stage("prepare")()

    (folder / "archive").write_bytes(archive)
    tree = smoke() | {
        "dataset": {
            "name": "cifar10", "urls": ["http://localhost/x"], "archive": "archive",
            "sha256": sha256(folder / "archive"), "train_per_class": "all", "validation": 4,
            "captioned_images": 4, "seed": 0,
        }
    }  # fmt: skip
    dump_params(folder, tree)
    return forked(folder, action, LIMITS)


def test_hostile_archives(imported: None, tmp_path: Path, times: Callable[[int], int]) -> None:
    rng = random.Random(0)
    faults = Faults("hostile archives")
    whole = prepare(tmp_path, gzip.compress(tar_of(sound()), 1))
    assert whole.code == 0, whole.err  # else every archive would be refused, whatever it holds
    for number in range(times(90)):
        make = rng.choice(KINDS)
        ended = prepare(tmp_path, make(rng))
        where = f"archive {number}, {make.__name__}"
        if (tmp_path / "unpickled").exists():
            faults.add("an object of the archive was run", where)
            (tmp_path / "unpickled").unlink()
        elif ended.fault:
            faults.add(ended.fault, f"{where}: {ended.reason}")
        else:
            faults.hold("refused in one line" if ended.refused else "read")
    faults.tell()
