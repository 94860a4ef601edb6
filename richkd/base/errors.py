"""The exception for bad input: a stage prints it as one line and ends with exit code 1."""

import sys
from typing import NoReturn

LONGEST = 290  # characters of a message: with the word `error: ` before it, a line has at most 300


class InputError(ValueError):
    """Bad input. The message says what is wrong, where, and what is allowed, in one line."""


def one_line(error: object, longest: int = LONGEST) -> str:
    """A message, ours or another library's, in one line of printable characters.

    Lines are joined, control characters are escaped. Of more than `longest` characters the middle
    is left out: the start says what is wrong and where, the end what is allowed.
    """
    text = " ".join(line.strip() for line in str(error).splitlines())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= longest:
        return text
    end = longest // 2 - 1
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def stop(error: object) -> NoReturn:
    """End the program with exit code 1 and one line on stderr."""
    close_bars()
    sys.exit(f"error: {one_line(error)}")


def close_bars() -> None:
    """End the line of each unfinished progress bar, so that what follows begins a new one."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # it may not be imported yet
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.leave = True  # it ends its line
        bar.close()
