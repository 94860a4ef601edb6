"""What a classifier minimises: cross entropy and any further terms, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models import ModelOutput
from richkd.params import Ce, Term

Number = TypeVar("Number", float, Tensor)


class Batch(NamedTuple):
    """What a term may know of a batch beside the classifier's output.

    labels, ids and view_ids int64 (B,), of the training images that the classifier has seen. `draw`
    is for what a term draws at random; `negatives` are what crd has drawn, if it has.
    """

    labels: Tensor
    ids: Tensor
    view_ids: Tensor
    draw: torch.Generator
    negatives: Tensor | None = None


class Objective(nn.Module):
    """Cross entropy, `ce`, and further terms, with the weights of their sum.

    A term is a module called with (output, batch) that returns a scalar; what it learns is trained
    along with the classifier. The weight of a term with a warm-up of W epochs is e/W of its own in
    epoch e, counted from 1, until e is W.
    """

    weights: Tensor  # of ce and of each term, in this epoch

    def __init__(
        self,
        options: Mapping[str, Term] | None = None,
        terms: Mapping[str, nn.Module] | None = None,
    ):
        """`options` have the weights of ce and of each of `terms`; alone, ce has weight 1."""
        super().__init__()
        self.options = options or {"ce": Ce(weight=1.0)}
        self.terms = nn.ModuleDict(terms)
        # On the device, where a captured graph reads the weights anew.
        self.register_buffer("weights", self._weights(1), persistent=False)

    @property
    def needs_maps(self) -> bool:
        """Whether a term compares the maps of the classifier's output."""
        return any(getattr(term, "compares", None) == "maps" for term in self.terms.values())

    def begin_epoch(self, number: int) -> None:
        """Epoch `number`, counted from 1, begins."""
        self.weights.copy_(self._weights(number))

    def draw(self, batch: Batch) -> Batch:
        """The batch with all that its terms draw at random: compiled code has no generators."""
        for term in self.terms.values():
            if hasattr(term, "draw"):
                batch = cast(Any, term).draw(batch)
        return batch

    def forward(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        """Each term before its weight, by name, in the order of `weights`: scalars in float32."""
        output = output.float()  # autocast may have halved it
        values = {"ce": F.cross_entropy(output.logits, batch.labels)}
        for name, term in self.terms.items():
            values[name] = term(output, batch)
        return values

    def total(self, values: Iterable[Number]) -> Number:
        """The weighted sum of the terms' values, which are in the order of `weights`."""
        pairs = zip(self.weights.tolist(), values, strict=True)
        return cast(Number, sum(weight * value for weight, value in pairs))

    def _weights(self, epoch: int) -> Tensor:
        """float32, on the CPU."""
        options = [self.options[name] for name in ("ce", *self.terms)]
        return torch.tensor(
            [x.weight * min(1.0, epoch / x.warm_up if x.warm_up else 1.0) for x in options]
        )
