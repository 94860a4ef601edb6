"""Ctrl-C and SIGTERM end a stage with one line instead of tracebacks.

Nothing has to be tidied up: a stage that is killed anywhere goes on when it is started again.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from richkd.base.errors import close_bars


def install() -> None:
    """Set the handlers, in a process that was started as a stage.

    One of several processes ends without a word: the one that started them speaks. It does not
    wait for Python, which gets no turn while the process waits for another one.
    """
    answer = signal.SIG_DFL if "RANK" in os.environ else end
    # Other handlers are somebody's choice: `nohup` lets a command ignore Ctrl-C, for example.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, answer)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, answer)


def end(number: int, frame: FrameType | None) -> None:
    """End this process at once. An exception could be caught, or print tracebacks of threads."""
    with suppress(Exception):  # the signal may have come in the middle of a write
        close_bars()
        sys.stdout.flush()
    os.write(2, b"interrupted; the same command goes on\n")
    os._exit(128 + number)
