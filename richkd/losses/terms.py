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


def find(name: str) -> Callable[..., Any]:
    """The loss called `name` in `TERMS`: the function `name` of `richkd/losses/<name>.py`.

    For `crd` the class `ContrastiveMemory`.
    """
    module = import_module(f"richkd.losses.{name}")
    loss: Callable[..., Any] = getattr(module, "ContrastiveMemory" if name == "crd" else name)
    return loss
