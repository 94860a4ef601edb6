"""Files broken at random, with a fixed seed: each loads, or is refused in one line, at once."""

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from richkd import params
from richkd.base.errors import InputError

PRESET = (Path(__file__).parents[2] / "presets" / "smoke.yaml").read_text()
FILES = 200
# What replaces a value, or a part of one. Some are no YAML, some are YAML that means much.
VALUES = [
    "", "~", "0", "-1", "1e400", "-.inf", ".nan", "1e-320", "9" * 400, "9" * 6000, "10" * 15, "0x_",
    "0b2", "0o9", "1_", "true", "yes", "2020-13-45", "2020-01-01", "2020-01-01 25:61:61",
    "12:99:99", "!!int word", "!!int", "!!bool maybe", "!!float x", "!!timestamp x", "!!set {a}",
    "!!binary '*'", "!!omap [a]", "!!python/name:os.system", "! x", "!<x> y", "&a [*a]", "*b", "*",
    "&", "<<: 3", "{<<: {a: 1}}", "{<<: [1]}", "{1: 2}", "{null: 2}", "{[a]: 2}", "{{a: b}: c}",
    '"\\ud800"', '"\\0"', '"\\e[31m"', '"a\\nb"', "'", '"', "{", "]", "[" * 3000, "{a: " * 3000,
    "x" * 900, "x" * 5000, "[" + "1, " * 12_000 + "]", "%TAG ! x", "---", "...", "|", ">-", "? a",
    "{:d}", "{!z}", "{:{}}", "'{:x>3000000000}'", "'{}{}'", "'{{}}'", "\t", "\x07", "\ufeff", "é",
]  # fmt: skip


def broken(draw: random.Random) -> bytes:
    """The preset with one to three values, keys, lines or bytes of it changed."""
    lines = PRESET.splitlines(keepends=True)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        key, colon, _ = lines[at].partition(":")
        way = draw.randrange(6)
        if way < 3:
            lines[at] = f"{key}{colon or '- '} {draw.choice(VALUES)}\n"
        elif way == 3:
            lines[at] = f"{' ' * draw.randrange(5)}{draw.choice(VALUES)}: 1\n"
        elif way == 4:
            lines.insert(at, draw.choice(lines))
        else:
            del lines[at]
    content = bytearray("".join(lines).encode("utf-8", "surrogatepass"))
    if draw.random() < 0.2:
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def test_every_broken_file_loads_or_is_one_line(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "params.yaml"
    refused = 0
    for number in range(FILES):
        path.write_bytes(broken(draw))
        start = time.process_time()
        try:
            params.load(path=path)
        except InputError as error:
            refused += 1
            message = str(error)
            assert message.startswith(str(path)) and message.isprintable(), number
            assert len(message) <= 300, number
        assert time.process_time() - start < 5, number
    assert FILES / 2 < refused < FILES  # the changes neither all break the file nor all leave it


@pytest.mark.parametrize("depth", [4, 9, 12])
def test_an_alias_bomb_takes_no_memory(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "params.yaml"
    levels = [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(depth)]
    path.write_text("a0: &a0 [x]\n" + "".join(levels))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"line 2 has the alias \*a0: write the value out"):
        params.load(path=path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6
