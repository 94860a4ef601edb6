"""Mutated params files: accepted, or refused in one plain line; never a traceback, never endless.

Numbers at the ends of what a file accepts are then run through the stage that reads them.
"""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign.forked import REPOSITORY, Ended, Limits, forked, stage
from campaign.workspace import Faults, Step, link_code, smoke
from campaign.workspace import copy as copy_folder

pytestmark = pytest.mark.slow

TOKEN = "TOKEN"  # stands in the tree of a file where hostile text will be
PRESETS = sorted((REPOSITORY / "presets").glob("*.yaml"))
LITTLE = Limits(seconds=30, memory=400_000_000)
NUMBERS = [
    *("0", "1", "-1", "2", "3", "16", "0.0", "1.0", "-1.0", "0.5", "2147483648", "4294967295"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "1000000000", "1" + 30 * "0"),
    *("1e9", "1e30", "1e200", "1e300", "1.7976931348623157e308", "5e-324", "1e-300", "1e-30"),
]
VALUES = [
    # tags whose value does not fit, and tags that nobody knows
    *("!!int word", "!!int", "!!bool perhaps", "!!bool", "!!float x", "!!float", "!!null x"),
    *("!!str", "!!binary '@@'", "!!binary aGVsbG8=", "!!timestamp x", "!!timestamp 2001-13-45"),
    *("!!set {a, b}", "!!omap [a: 1, a: 2]", "!!omap 3", "!!pairs [a: 1]", "!!seq x", "!!map x"),
    *("!!python/object/apply:os.abort []", "!unknown x", "!<tag:yaml.org,2002:int> x", "! x", "!"),
    # dates, numbers and words that YAML takes for something
    *("2001-13-45", "2001-02-30", "2001-12-14 25:61:61", "2001-12-14t21:59:43.10-99:99", "0o17"),
    *("0o9", "0x7fffffffffffffffffffffffff", "0b2", "1_000", "190:20:30", "+", "+1", ".nan"),
    *(".inf", "-.inf", "-0.0", "1e400", "1e-400", "1e99999999999", "true", "yes", "null", "~"),
    *(5000 * "9", "-" + 5000 * "9", "1." + 5000 * "3", "1e" + 20 * "9", "=", "<<", "''"),
    # anchors, nesting, sizes
    *("&a [*a]", "&a {b: *a}", "&a x", "*nothing", "&a", "&", "*", "{<<: 3}", "{<<: [3]}"),
    *(400 * "[" + 400 * "]", 2000 * "[", 100_000 * "[", 300 * "{a: " + "1" + 300 * "}"),
    *(1_000_000 * "x", "[0" + 20_000 * ", 0" + "]", "{" + 9000 * "a, " + "}"),
    # what cannot be printed
    *('"\\x1b[31mred\\x1b[0m"', '"\\0"', '"\\ud800"', '"\\u2028"', '"\\u202e"', '"a\\nb"', '"\\r"'),
    *("\x00", "\x1b[2J", "\x85", "\ufeff", '"\\U0001F600"', "\\x00", '"\\udcff"'),
    # other kinds, and broken ones
    *("[1, 2]", "{a: 1}", "[]", "{}", "[[[]]]", "- x", "|", ">", "| text", "'", '"', "{", "]", "%"),
    *("@", "`", "\t", "x: y: z", "? a", "# no", "[a, a]", "{}{}", "--- x", "..."),
    *("{}", "'{:d}'", "'{!z}'", "'{:{}}'", "'{:x>3000000000}'", "'{0}'", "'{a} {}'", "'{{}}'"),
]
KEYS = [
    *('"a\\nb"', '"\\x1b[31m"', "1", "null", "true", "1.5", "2001-01-01", "[a]", "{a: b}", "''"),
    *(
        "!!int x",
        "!!binary aGk=",
        100_000 * "x",
        "<<",
        "=",
        '"\\u202e"',
        "&a x",
        "*a",
        "lr",
        "name",
    ),
    *("!!float x", "2001-13-45", "? [a, b]\n", "!!set {a}", '"\\ud800"', "epochs", ".nan", "- x"),
]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree of dicts and lists."""
    if path:
        yield path
    if not isinstance(tree, dict | list):
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


class Plain(yaml.SafeDumper):
    """Writes out what stands twice, where PyYAML would write an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def load(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dump(tree: Any) -> str:
    return yaml.dump(tree, Dumper=Plain, sort_keys=False, width=10**9)


def with_value(rng: random.Random, text: str, values: list[str]) -> str:
    tree = load(text)
    put(tree, rng.choice(list(places(tree))), TOKEN)
    return dump(tree).replace(TOKEN, rng.choice(values))


def with_number(rng: random.Random, text: str) -> str:
    return with_value(rng, text, NUMBERS)


def with_hostile_value(rng: random.Random, text: str) -> str:
    return with_value(rng, text, VALUES)


def with_key(rng: random.Random, text: str) -> str:
    """A key more, or one in the place of another."""
    tree = load(text)
    path = rng.choice([path for path in places(tree) if isinstance(path[-1], str)])
    section = tree
    for key in path[:-1]:
        section = section[key]
    section[TOKEN] = section[path[-1]]
    if rng.random() < 0.5:
        del section[path[-1]]
    return dump(tree).replace(TOKEN, rng.choice(KEYS))


def with_other_kind(rng: random.Random, text: str) -> str:
    """A section in the place of another value of the same file."""
    tree = load(text)
    one, other = rng.choices(list(places(tree)), k=2)
    value = tree
    for key in other:
        value = value[key]
    put(tree, one, copy.deepcopy(value))  # it may hold the place itself
    return dump(tree)


def with_bomb(rng: random.Random, text: str) -> str:
    """A few lines that name billions of values."""
    levels = rng.randint(3, 12)
    rows = [f"bomb0: &b0 [{', '.join(9 * ['x'])}]"]
    rows += [f"bomb{i}: &b{i} [{', '.join(9 * [f'*b{i - 1}'])}]" for i in range(1, levels)]
    return "\n".join([*rows, text])


def with_lines(rng: random.Random, text: str) -> str:
    """A line that is gone, is there twice, elsewhere, or indented in another way."""
    lines = text.splitlines()
    at, other = (rng.randrange(len(lines)) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at] = rng.choice([" ", "\t", "   "]) + lines[at]
    elif kind == 3:
        lines[at] = lines[at].lstrip()
    else:
        lines.insert(
            at, rng.choice(["---", "...", "%YAML 1.1", "%TAG ! x", "<<: {a: 1}", "&a", "? x"])
        )
    return "\n".join(lines)


def with_characters(rng: random.Random, text: str) -> bytes:
    """Another encoding, cut off, or with other bytes in it."""
    kind = rng.randrange(5)
    if kind == 0:
        return text.encode(rng.choice(["utf-16", "utf-8-sig", "utf-32", "utf-16-be"]))
    data = bytearray(text.encode())
    if kind == 1:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(len(data))
        if kind == 2:
            data[at] = rng.randrange(256)
        elif kind == 3:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at:at] = rng.choice([b"\0", b"\x1b", b"\x7f", b"\r", b"\t", b"\xc2\x85", b"\xff"])
    return bytes(data)


MUTATIONS: dict[Callable[[random.Random, str], str | bytes], int] = {
    with_number: 25, with_hostile_value: 35, with_key: 15, with_other_kind: 8, with_bomb: 3,
    with_lines: 10, with_characters: 10,
}  # fmt: skip


def check(folder: Path, content: bytes, limits: Limits = LITTLE) -> Ended:
    """What `python -m stages.code` says of a params file, without the fingerprints of the code."""

    def action() -> None:
        from richkd import fingerprints

        fingerprints.code_fingerprints = lambda *_: {}
        stage("code")()

    (folder / "params.yaml").write_bytes(content)
    return forked(folder, action, limits)


def test_mutated_files(imported: None, tmp_path: Path, times: Callable[[int], int]) -> None:
    rng = random.Random(0)
    faults = Faults("mutated params files")
    link_code(tmp_path)
    texts = [path.read_text() for path in PRESETS]
    for number in range(times(150)):
        (mutate,) = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))
        mutated = mutate(rng, rng.choice(texts))
        content = mutated.encode() if isinstance(mutated, str) else mutated
        ended = check(tmp_path, content)
        if ended.fault:
            faults.add(ended.fault, f"file {number}, {mutate.__name__}: {ended.reason!r}")
        else:
            faults.hold("refused" if ended.refused else "accepted")
    faults.tell()


# --- params that a file may hold, run ------------------------------------------------------------

READERS = {
    "dataset": "prepare", "views": "cache teacher", "runtime": "alone", "teacher": "teacher",
    "clip": "clip", "cache": "cache teacher", "student": "alone", "fusion": "fusion",
    "distill": "distill LF", "corruptions": "corrupt", "evaluate": "evaluate kd",
    "calibration": "calibrate kd",
}  # fmt: skip
CHOICES: dict[tuple[Any, ...], list[Any]] = {
    ("dataset", "classes"): [["zero"], ["zero", "one"], ["eleventy"]],
    ("runtime", "device"): ["cuda"],
    ("runtime", "precision"): ["bf16"],
    ("runtime", "step"): ["graph"],
    ("runtime", "deterministic"): [True],
    ("clip", "logit_scale"): [1.0, 1e-300, 1e300],
    ("clip", "prompts", 0): ["{:d}", "{!z}", "{:{}}", "{:x>3000000000}", "{0}", "{:>9}", "{!r}"],
    ("clip", "training", "captions", 0): ["{:d}", "{!z}", "{:{}}", "{:x>3000000000}", "{:9}"],
    ("cache", "top_k"): [1, 5, 6, 10**9],
    ("cache", "teacher"): ["center", "online"],
    ("student", "arch"): [
        "torchvision/alexnet",
        "timm/vit_tiny_patch16_224",
        "MobileNetV2",
        "vgg8",
    ],
    ("teacher", "arch"): ["torchvision/alexnet", "ShuffleV1", "torchvision/inception_v3"],
    ("student", "schedule"): ["step"],
}


def boundaries() -> list[tuple[tuple[Any, ...], Any]]:
    """Every number of the smoke preset with every boundary, and some words."""
    tree = smoke()
    found: list[tuple[tuple[Any, ...], Any]] = []
    for path in places(tree):
        value: Any = tree
        for key in path:
            value = value[key]
        if path[0] in READERS and type(value) in (int, float):
            found += [
                (path, yaml.safe_load(text) if "e" not in text else float(text)) for text in NUMBERS
            ]
    return found + [(path, value) for path, values in CHOICES.items() for value in values]


def test_boundaries(steps: dict[str, Step], tmp_path: Path, times: Callable[[int], int]) -> None:
    """An accepted value is run by the stage that reads it: it works, or one line says why not."""
    rng = random.Random(0)
    faults = Faults("params at the boundaries, run")
    wanted, every = times(24), boundaries()
    rng.shuffle(every)
    checked, folder = tmp_path / "checked", tmp_path / "folder"
    checked.mkdir()
    link_code(checked)
    for path, value in every:
        if faults.tried >= wanted:
            break
        tree = smoke()
        put(tree, path, value)
        content = dump(tree).encode()
        if check(checked, content).code != 0:
            continue  # refused before any work: test_mutated_files has judged how
        reader = READERS[path[0]]
        if path[:2] == ("distill", "variants"):
            reader = f"distill {path[2]}"
        step = steps[reader]
        copy_folder(step.before, folder)
        (folder / "params.yaml").write_bytes(content)
        ended = forked(folder, step.action, Limits(25, 3_000_000_000))
        where = f"{'.'.join(map(str, path))} = {value!r:.40}, {step.name}"
        if ended.fault:
            faults.add(ended.fault, f"{where}: {ended.reason}")
        else:
            faults.hold("refused late, in one line" if ended.refused else "run to the end")
    faults.tell()
