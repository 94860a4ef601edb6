"""The losses that a variant may name, and what each of them compares."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Other code reads this table from the syntax tree: a plain literal, one line for each loss.
# "logits of the batch" are those of a loss that relates the images of a batch to each other. Losses
# on features do so always, the others never.
TERMS: dict[str, str] = {
    "kd": "logits",
    "dkd": "logits and labels",
    "mlkd": "logits of the batch",
    "dist": "logits of the batch",
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
