"""A teacher that runs along: what it answers is made from the batch at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from richkd.classifiers import Loaded
from richkd.engine import autocast
from richkd.models import ModelOutput, with_maps
from richkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet


class Online(Teacher):
    """A frozen teacher that runs on each batch, as the student sees it; on a GPU in bf16.

    Call `reader` first: it returns the teacher that knows the run's images. With `maps` the teacher
    has feature maps, too.
    """

    def __init__(
        self, loaded: Loaded, maps: bool = False, data: ResidentSet | FileSet | None = None
    ):
        self.loaded, self.has_maps, self.data = loaded, maps, data
        self.forward = with_maps(loaded.model) if maps else loaded.model
        self.output: ModelOutput | None = None
        if data is not None:  # the batch is normalised for the student
            theirs, own = loaded.preprocessing, data.preprocessing
            mean, std, own_mean, own_std = (
                torch.tensor(x, device=data.device)
                for x in (theirs.mean, theirs.std, own.mean, own.std)
            )
            self.scale = (own_std / std).view(3, 1, 1)
            self.shift = ((own_mean - mean) / std).view(3, 1, 1)

    @property
    def feature_dim(self) -> int:
        return cast(int, self.loaded.model.feature_dim)

    def reader(self, data: ResidentSet | FileSet) -> Online:
        """The teacher sees what the run's student sees."""
        return Online(self.loaded, self.has_maps, data)

    def next_batch(self) -> None:
        self.output = None

    def logits(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self._run(ids, view_ids).logits

    def features(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        return self._run(ids, view_ids).features

    def maps(self, ids: Tensor, view_ids: Tensor) -> tuple[Tensor, ...]:
        return self._run(ids, view_ids).maps

    def _run(self, ids: Tensor, view_ids: Tensor) -> ModelOutput:
        """Once a batch, whatever is asked."""
        assert self.data is not None  # this is what `reader` returned
        if self.output is None:
            device = self.data.device
            precision = "bf16" if device.type == "cuda" else "fp32"
            with torch.no_grad(), autocast(device, precision):
                images = self.data.batch(ids, view_ids) * self.scale + self.shift
                self.output = self.forward(images).float()
        return self.output
