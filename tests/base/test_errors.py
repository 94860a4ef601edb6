"""Whatever a message holds, the last line of a failed stage is one line that can be read."""

import subprocess
import sys

import pytest

from richkd.base.errors import LONGEST, one_line, stop

MESSAGES = {
    "lines": ("a\n  b\r\nc\u2028d", "a b c d"),
    "escape sequence": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "zero byte": ("a\0b", r"a\x00b"),
    "half a character": ("a\ud800b", r"a\ud800b"),
    "other letters": ("größer als 2 µm, 猫", "größer als 2 µm, 猫"),
    "spaces": ("a  b.jpg", "a  b.jpg"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_one_line_has_printable_characters_alone(name):
    text, expected = MESSAGES[name]
    assert one_line(text) == one_line(ValueError(text)) == expected
    assert expected.isprintable()


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 10_000])
def test_of_a_long_message_the_start_and_the_end_stay(length):
    text = "x is " + "9" * (length - 20) + ": must be below"
    line = one_line(text)
    assert len(line) == min(length, LONGEST)
    assert line.startswith("x is 99") and line.endswith("99: must be below")
    assert (line == text) == (length <= LONGEST)


def test_control_characters_count_as_they_are_printed():
    assert len(one_line("\0" * 200)) == LONGEST


def test_stop_ends_with_one_line_of_at_most_300_characters(capsys):
    with pytest.raises(SystemExit) as ended:
        stop(ValueError("wrong\n" + "x" * 1000))
    assert str(ended.value.code).startswith("error: wrong x")
    assert len(str(ended.value.code)) <= 300


def test_an_unfinished_bar_does_not_share_the_line():
    code = (
        "from tqdm import tqdm; from richkd.base.errors import stop\n"
        "bar, inner = tqdm(total=9, ascii=True), tqdm(total=9, ascii=True, leave=False)\n"
        "bar.update(3); stop('it broke')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.replace("\r", "\n").splitlines()[-1] == "error: it broke"
    assert ended.stderr.endswith("\nerror: it broke\n")
