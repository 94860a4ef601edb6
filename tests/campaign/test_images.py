"""Odd images and file names in folders, through `prepare`: read, left out, or one line."""

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign.forked import Ended, Limits, forked, stage
from campaign.workspace import Faults, dump_params, smoke
from PIL import Image

pytestmark = pytest.mark.slow

NAMES = [
    "odd", "a b", "ä", "a\u0308", "new\nline", "\x1b[31m", "\udcff", "-x", "'", '"', "%s", "{}",
    "x" * 240, ".hidden", "\u202e", "*", "odd.jpg", "back\\slash",
]  # fmt: skip
SUFFIXES = [".jpg", ".png", ".webp", ".JPEG", ".gif", ".txt", ""]
FORMATS = {
    "JPEG": ["L", "RGB", "CMYK"], "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"], "GIF": ["P"], "BMP": ["RGB"], "TIFF": ["F", "RGB"], "PPM": ["RGB"],
}  # fmt: skip


def picture(
    rng: random.Random, size: tuple[int, int], form: str | None = None, **more: Any
) -> bytes:
    """An image file of noise."""
    form = form or rng.choice(sorted(FORMATS))
    noise = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8)
    image = Image.fromarray(noise.reshape(size[1], size[0], 3))
    mode = rng.choice(FORMATS[form])
    grey = np.asarray(image.convert("L"))
    image = Image.fromarray(grey.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(rng: random.Random) -> bytes:
    """A PNG whose header or texts promise far more than the file holds."""
    width, height = rng.choice([(0, 5), (2**31 - 1, 1), (30_000, 30_000), (13_300, 13_300), (8, 8)])
    header = struct.pack(
        ">IIBBBBB", width, height, rng.choice([1, 8, 16, 7]), rng.choice([0, 2, 3, 9]), 0, 0, 0
    )
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7)))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7)))
    rows = chunk(b"IDAT", zlib.compress(bytes(rng.choice([10, 10**6]))))
    middle = b"".join(
        rng.sample([text, profile, rows, chunk(b"tRNS", b"\0"), chunk(b"PLTE", b"ab")], 3)
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IEND", b"")


def damaged(rng: random.Random) -> bytes:
    data = bytearray(picture(rng, (20, 20), rng.choice(["JPEG", "PNG", "WEBP"])))
    if rng.random() < 0.4:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice([1, 5, 50])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def odd(rng: random.Random) -> bytes:
    turned = Image.Exif()
    turned[0x0112] = rng.choice([0, 1, 6, 9, 65_535])
    makers: list[Callable[[], bytes]] = [
        lambda: picture(rng, (rng.choice([1, 2, 3, 40]), rng.choice([1, 2, 7, 500]))),
        lambda: picture(rng, (20, 20)),
        lambda: picture(rng, (5, 9), "JPEG", exif=turned.tobytes()),
        lambda: picture(rng, (5, 9), "JPEG") + rng.randbytes(30),
        lambda: picture(rng, (5, 9), "JPEG", progressive=True, quality=1),
        lambda: with_chunks(rng),
        lambda: damaged(rng),
        lambda: rng.choice(
            [b"", b"\0", b"\xff\xd8\xff\xd9", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"hello"]
        ),
    ]
    return rng.choice(makers)()


def place(rng: random.Random, folder: Path) -> str:
    """Put something odd into a class's folder; returns what."""
    name = rng.choice(NAMES) + rng.choice(SUFFIXES)
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    kind = rng.choice(["file"] * 8 + ["broken link", "link to itself", "pipe", "folder"])
    if kind == "broken link":
        os.symlink(b"nothing", path)
    elif kind == "link to itself":
        os.symlink(path, path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        os.makedirs(os.path.join(path, b"inside"))
    else:
        Path(os.fsdecode(path)).write_bytes(odd(rng))
    return f"{kind} {name!r}"


def prepare(folder: Path, unreadable: int) -> Ended:
    """What the stages `prepare` and `teacher` do: the files are found, then decoded."""
    tree = smoke() | {
        "dataset": {
            "name": "folder", "root": "images", "classes": "all", "expect_train": None,
            "expect_val": None, "unreadable": unreadable, "train_per_class": "all",
            "validation": 0, "captioned_images": 2, "seed": 0, "names": None,
        },
        "views": {
            "augmentation": "resized_crop", "size": 16, "resize": 16, "scale": [0.5, 1.0],
            "ratio": [0.75, 1.33], "flip": True,
        },
        "shifted": {},
    }  # fmt: skip
    tree["cache"] |= {"teacher": "center", "clip": "center"}
    tree["corruptions"] |= {"names": ["gaussian_noise"]}
    tree["teacher"] |= {"epochs": 1}
    dump_params(folder, tree)

    def action() -> None:
        stage("prepare")()
        stage("teacher")()

    return forked(folder, action, Limits(seconds=40, memory=3_000_000_000))


def test_odd_images(imported: None, tmp_path: Path, times: Callable[[int], int]) -> None:
    rng = random.Random(0)
    faults = Faults("folders with odd images")
    for number in range(times(30)):
        folder = tmp_path / str(number)
        for part in ("train/a", "train/b", "val/a", "val/b"):
            (folder / "images" / part).mkdir(parents=True)
            for i in range(3):
                (folder / "images" / part / f"{i}.png").write_bytes(picture(rng, (20, 20), "PNG"))
        count = rng.choice([0, 1, 1, 3]) if number else 0  # the first folder is a sound one
        placed = [
            place(rng, folder / "images" / rng.choice(["train/a", "val/b"])) for _ in range(count)
        ]
        ended = prepare(folder, rng.choice([0, 10]))
        where = f"folder {number}, {', '.join(placed)}"
        if ended.fault:
            faults.add(ended.fault, f"{where}: {ended.reason}")
        elif not number and ended.refused:
            faults.add("a sound folder is refused", ended.reason)
        else:
            faults.hold("refused in one line" if ended.refused else "read")
    faults.tell()
