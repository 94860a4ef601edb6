"""What cannot fit is refused before memory is taken: the system would kill the process later."""

import psutil

from richkd.base.errors import InputError


def available() -> int:
    """The free memory of the machine, in bytes."""
    return psutil.virtual_memory().available


def check(what: str, needed: int, free: int, instead: str) -> None:
    """InputError if `what` needs more bytes than are free; the line ends with `instead`."""
    if needed > free:
        raise InputError(
            f"{what} take {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} are free: {instead}"
        )
