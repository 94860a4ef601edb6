"""A teacher that runs along: what it answers is made from the batch at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from richkd.classifiers import Loaded
from richkd.engine import autocast
from richkd.models import ModelOutput
from richkd.teachers.table import Table

if TYPE_CHECKING:
    from richkd.data.imagesets import FileSet
    from richkd.data.resident import ResidentSet


class Online(Table):
    """A frozen teacher that runs on each batch, as the student sees it; on a GPU in bf16."""

    def __init__(self, loaded: Loaded, data: ResidentSet | FileSet | None = None):
        super().__init__()
        self.loaded, self.data = loaded, data
        self.output: ModelOutput | None = None
        if data is not None:  # the batch is normalised for the student
            mean, std = (torch.tensor(x, device=data.device) for x in (loaded.mean, loaded.std))
            own_mean, own_std = (torch.tensor(x, device=data.device) for x in (data.mean, data.std))
            self.scale = (own_std / std).view(3, 1, 1)
            self.shift = ((own_mean - mean) / std).view(3, 1, 1)

    @property
    def feature_dim(self) -> int:
        return self.loaded.model.feature_dim

    def reader(self, data: ResidentSet | FileSet) -> Online:
        """It sees what the run sees."""
        return Online(self.loaded, data)

    def advance(self) -> None:
        self.output = None

    def _lookup(self, part: str, ids: Tensor, view_ids: Tensor) -> Tensor:
        if self.output is None:  # once for both parts
            on_gpu = self.data.device.type == "cuda"
            with torch.no_grad(), autocast(self.data.device, "bf16" if on_gpu else "fp32"):
                images = self.data.batch(ids, view_ids) * self.scale + self.shift
                self.output = self.loaded.model(images)
        return getattr(self.output, part)
