"""What a classifier returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class _Pair(NamedTuple):
    logits: Tensor
    features: Tensor


class ModelOutput(_Pair):
    """Logits (N, classes) and the pooled vector before the classifier (N, feature_dim).

    Unpacks to these two. `maps` are the feature maps (N, channels, height, width) after each stage
    of the network, where `richkd.models.with_maps` made the output; otherwise `maps` is empty.
    """

    maps: tuple[Tensor, ...] = ()

    def add_maps(self, maps: Iterable[Tensor]) -> ModelOutput:
        """An output with the same logits and features, and with `maps`."""
        output = ModelOutput(*self)
        output.maps = tuple(maps)
        return output

    def float(self) -> ModelOutput:
        """The output with logits, features and maps in float32, which autocast may have halved."""
        pair = ModelOutput(*(tensor.float() for tensor in self))
        return pair.add_maps(tensor.float() for tensor in self.maps)
