"""What a classifier minimises: cross entropy and any further terms, by name."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models import ModelOutput


class Objective(nn.Module):
    """ce_weight · CE + Σ weight · term, e.g. `Objective(1.0, kd=(3.0, LogitDistillation(...)))`.

    A term is a module called with (output, ids, view_ids, draw) that returns a scalar; what it
    learns is trained along with the classifier.
    """

    def __init__(self, ce_weight: float = 1.0, **terms: tuple[float, nn.Module]):
        super().__init__()
        self.weights = {"ce": ce_weight, **{name: weight for name, (weight, _) in terms.items()}}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})

    def forward(
        self,
        output: ModelOutput,
        labels: Tensor,
        ids: Tensor,
        view_ids: Tensor,
        draw: torch.Generator,
    ) -> dict[str, Tensor]:
        """Scalars in float32: `loss`, the weighted sum, and each term before its weight.

        `output` is the classifier's on the views `view_ids` (B,) of the training images `ids` (B,)
        with `labels` (B,). `draw` is for what a term draws at random.
        """
        output = ModelOutput(*(tensor.float() for tensor in output))  # autocast may have halved it
        values = {"ce": F.cross_entropy(output.logits, labels)}
        for name, term in self.terms.items():
            values[name] = term(output, ids, view_ids, draw)
        return {"loss": sum(self.weights[name] * value for name, value in values.items()), **values}
