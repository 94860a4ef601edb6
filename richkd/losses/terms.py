"""The losses that a variant may name, and what each of them compares."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Other code reads this table from the syntax tree: a plain literal, one line for each loss.
TERMS: dict[str, str] = {
    "kd": "logits",
    "dkd": "logits and labels",
    "mlkd": "logits",
    "dist": "logits",
    "rkd": "features",
    "sp": "features",
    "pkt": "features",
    "crd": "memory",
    "at": "maps",
    "nst": "maps",
}


def loss_function(name: str) -> Callable[..., Any]:
    """The function `name` of `richkd/losses/<name>.py`; any loss of `TERMS` but `crd`, a class."""
    loss: Callable[..., Any] = getattr(import_module(f"richkd.losses.{name}"), name)
    return loss
