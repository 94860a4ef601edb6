"""Files between stages that are cut, emptied, replaced or have another bit.

The next stage gives the result of whole files, or one plain line. What a stage left in .resume when
it was killed is never a reason to give up: the stage ends in the bytes of an unbroken run.

A pixel, a logit or a metric with another value is no damage that a stage could see. DVC sees it, by
the file's hash. Such values count as other data here: no traceback, but another result.
"""

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from campaign.forked import REPOSITORY, Ended, Limits, forked, watched
from campaign.workspace import VARIANTS, Faults, Step, copy, differing, spread

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=40, memory=3_000_000_000)
Damage = tuple[str, Callable[[Path], object]]  # what is done, and how


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing/is/here")


def of_any_file(data: bytes, rng: random.Random) -> list[Damage]:
    """What must not change a result without a word."""
    return [
        ("emptied", write(b"")),
        ("cut", write(data[: rng.randrange(1, len(data))])),
        ("a byte less", write(data[:-1])),
        ("text instead", write(b"hello\n")),
        ("random bytes instead", write(rng.randbytes(min(len(data), 100_000)))),
        ("zeros instead", write(bytes(len(data)))),
        ("a folder instead", into_folder),
        ("a broken link instead", into_broken_link),
        ("gone", Path.unlink),
    ]


def of_binary(data: bytes, rng: random.Random) -> list[Damage]:
    """Bits of a header; a header that promises too much."""
    at, bit = rng.randrange(min(len(data), 100)), rng.randrange(8)
    huge = struct.pack("<Q", 2**40) + data[8:]
    return [
        ("another bit in the header", write(flip(data, at, bit))),
        ("another first byte", write(flip(data, rng.randrange(12), bit))),
        ("a huge length", write(huge)),
    ]


def of_array(data: bytes, rng: random.Random) -> list[Damage]:
    """Arrays of another dtype or shape."""
    array = np.load(io.BytesIO(data))
    others = [
        ("objects", np.full(array.shape, None)),
        ("complex numbers", array.astype(complex)),
        ("words", array.astype(str)),
        ("no dimension", np.array(1.0)),
        ("no rows", array[:0]),
        ("a row less", array[..., :-1, :] if array.ndim > 1 else array[:-1]),
        ("a column less", array[..., :-1]),
        ("transposed", np.ascontiguousarray(array.T)),
        ("one dimension", array.reshape(-1)),
    ]
    chosen = rng.sample(others, 3)
    return [(f"an array: {name}", write(saved(other))) for name, other in chosen]


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def of_tensors(data: bytes, rng: random.Random) -> list[Damage]:
    """A safetensors file of other tensors than it had."""
    from safetensors.numpy import load, save

    tensors = load(data)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    others: dict[str, dict[str, np.ndarray]] = {
        "a tensor gone": {key: x for key, x in tensors.items() if key != name},
        "a tensor more": {**tensors, "more": np.zeros(3)},
        "another name": {(f"{key}x" if key == name else key): x for key, x in tensors.items()},
        "a value more": {**tensors, name: np.append(tensor.reshape(-1), [0]).astype(tensor.dtype)},
        "no value": {**tensors, name: tensor.reshape(-1)[:0]},
        "complex": {**tensors, name: tensor.astype(np.complex64)},
        "nothing": {},
    }
    chosen = rng.sample(sorted(others), 3)
    return [(f"tensors: {key}", write(save(others[key]))) for key in chosen]


def of_json(data: bytes, rng: random.Random) -> list[Damage]:
    """JSON of another shape."""
    texts = {
        "a list": "[]", "nothing": "null", "a number": "3", "a word": '"x"',
        "nested": 100_000 * "[", "no keys": "{}", "a long number": "9" * 5000,
        "not a number": '{"top1": NaN}',
    }  # fmt: skip
    key = rng.choice(sorted(texts))
    return [
        (f"JSON: {key}", write(texts[key].encode())),
        ("JSON: no UTF-8", write(b"\xff\xfe" + data)),
        ("JSON: another kind of value", write(with_other_value(json.loads(data), rng))),
    ]


def with_other_value(tree: Any, rng: random.Random) -> bytes:
    """The tree with one value, at any depth, in the place of which stands one of another kind."""
    if not isinstance(tree, dict) or not tree:
        return b"7"
    at, key = tree, rng.choice(sorted(tree))
    while isinstance(at[key], dict) and at[key] and rng.random() < 0.8:
        at = at[key]
        key = rng.choice(sorted(at))
    others = [None, [], {}, "x", -1, True, [[1]], 1e308, {"x": {"y": 1}}]
    at[key] = rng.choice([x for x in others if not isinstance(x, type(at[key]))])
    return json.dumps(tree).encode()


def of_csv(data: bytes, rng: random.Random) -> list[Damage]:
    head, _, rows = data.partition(b"\n")
    return [
        ("CSV: no head", write(rows)),
        ("CSV: no rows", write(head + b"\n")),
        ("CSV: words", write(head + b"\n" + b",".join([b"x"] * (head.count(b",") + 1)) + b"\n")),
        ("CSV: a NUL", write(data.replace(b"0", b"\0", 3))),
        ("CSV: a quote that never ends", write(head + b'\n"' + rows)),
        ("CSV: no UTF-8", write(b"\xff\xfe" + data)),
    ]


def other_data(path: Path, data: bytes, rng: random.Random) -> list[Damage]:
    """Values that DVC alone can see: a stage may give another result, but no traceback."""
    if path.suffix == ".npy":
        array = np.load(io.BytesIO(data))
        kinds = [("nan", np.nan), ("infinity", np.inf), ("zeros", 0)]
        name, value = rng.choice(kinds if array.dtype.kind == "f" else kinds[2:])
        return [(f"values: {name}", write(saved(np.full_like(array, value))))]
    if path.suffix == ".json" and isinstance(tree := json.loads(data), dict) and tree:
        del tree[rng.choice(sorted(tree))]
        return [("values: a key gone", write(json.dumps(tree).encode()))]
    at = rng.randrange(len(data) // 2, len(data))
    return [("values: another bit", write(flip(data, at, rng.randrange(8))))]


SPECIAL: dict[str, list[Callable[[bytes, random.Random], list[Damage]]]] = {
    ".json": [of_json], ".csv": [of_csv], ".npy": [of_binary, of_array],
    ".safetensors": [of_binary, of_tensors],
}  # fmt: skip


def damage_of(path: Path, rng: random.Random) -> Damage:
    data = path.read_bytes()
    special = [x for make in SPECIAL.get(path.suffix, []) for x in make(data, rng)]
    if special and rng.random() < 0.5:
        return rng.choice(special)
    return rng.choice([*of_any_file(data, rng), *other_data(path, data, rng)])


def read_by(step: Step) -> list[Path]:
    """The files that a stage reads of stages before it, by dvc.yaml."""
    for entry in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].values():
        names: list[dict[str, str]] = [{}]
        if each := entry.get("foreach"):
            names = [{"${item}": name} for name in each]
            if isinstance(each, str):
                names = [
                    {"${key}": key, "${item.teacher}": str(variant["teacher"])}
                    for key, variant in VARIANTS.items()
                ]
        for words in names:
            if filled(entry.get("do", entry)["cmd"], words) == f"python -m stages.{step.name}":
                paths = [filled(path, words) for path in entry.get("do", entry)["deps"]]
                return [file for path in paths for file in files_of(step.before, path)]
    raise AssertionError(step.name)


def filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(name, value)
    return text


def files_of(folder: Path, path: str) -> list[Path]:
    """The files of an output, empty ones left out."""
    if not path.startswith(("data", "cache", "models", "predictions", "metrics")):
        return []
    place = folder / path
    every = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [x.relative_to(folder) for x in every if x.is_file() and x.stat().st_size > 1]


def test_files_between_stages(
    steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]
) -> None:
    rng = random.Random(0)
    faults = Faults("damaged files between stages")
    readers = {name: step for name, step in steps.items() if read_by(step)}
    for step in spread(readers, times(70), rng):
        folder = copy(step.before, tmp_path / "folder")
        path = rng.choice(read_by(step))
        kind, damage = damage_of(folder / path, rng)
        damage(folder / path)
        ended = forked(folder, step.action, LIMITS)
        where = f"{step.name}, {path}: {kind}"
        if ended.fault:
            faults.add(ended.fault, f"{where}: {ended.reason}")
        elif ended.refused:
            faults.hold("refused in one line")
        elif others := [x for x in differing(folder, step.after) if x != str(path)]:
            if kind.startswith("values"):
                faults.hold("another result of other data")
            else:
                faults.add("another result without a word", f"{where}: {', '.join(others[:3])}")
        else:
            faults.hold("the same result")
    faults.tell()


def test_what_a_killed_stage_left(
    steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]
) -> None:
    rng = random.Random(1)
    faults = Faults("damaged files in .resume")
    saving = {name: x for name, x in steps.items() if saves(x)}
    for step in spread(saving, times(48), rng):
        folder = copy(step.before, tmp_path / "folder")
        number = rng.choice(saves(step)[1:])
        forked(folder, watched(step.action, tmp_path / "log", number), LIMITS)
        left = [x for x in (folder / ".resume").rglob("*") if x.is_file() and x.stat().st_size]
        if not left:
            faults.hold("nothing was left")
            continue
        path = rng.choice(sorted(left))
        kind, damage = damage_to_resume(path, rng)
        damage(path)
        ended = forked(folder, step.action, LIMITS)
        where = f"{step.name}, {path.relative_to(folder)}: {kind} (killed at change {number})"
        if wrong := damaged_resume(step, folder, ended, kind):
            faults.add(wrong, f"{where}: {ended.reason}")
        else:
            faults.hold("the same at last" if ended.code == 0 else "refused in one line")
    faults.tell()


def saves(step: Step) -> list[int]:
    """The numbers of the changes below .resume after which there is work in it."""
    changes = enumerate(step.changes)
    return [i for i, x in changes if x.path.startswith(".resume") and x.work > 0]


def damage_to_resume(path: Path, rng: random.Random) -> Damage:
    """As of other files, and a bit anywhere, since nothing but the stage looks after these."""
    data = path.read_bytes()
    flipped = flip(data, rng.randrange(len(data)), rng.randrange(8))
    kinds = [*of_any_file(data, rng), *(4 * [("another bit", write(flipped))])]
    if path.suffix == ".json":
        kinds += of_json(data, rng)
    return rng.choice(kinds)


def damaged_resume(step: Step, folder: Path, ended: Ended, kind: str) -> str | None:
    """What is wrong with the end of a run that found this damage."""
    if ended.fault:
        return ended.fault
    if ended.refused:  # only what no stage has made may stop it
        return None if "instead" in kind else "refused, each time again"
    return "another result without a word" if differing(folder, step.after) else None
