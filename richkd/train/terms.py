"""A loss under a teacher: what the student gave is compared with what the teacher answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from richkd.base import distributed, memory
from richkd.base.vectors import unit
from richkd.engine import free_memory
from richkd.losses import ContrastiveMemory
from richkd.losses.terms import TERMS, loss_function
from richkd.models import ModelOutput
from richkd.params import Term
from richkd.teachers.teacher import Teacher
from richkd.train.objective import Batch, Objective

NEGATIVES = {
    "per_sample": "of each sample's own",
    "shared": "shared by a batch",
    "all": "all samples of other classes",
}


def parts_needed(variant: Mapping[str, Term]) -> list[str]:
    """The parts of a teacher that a variant's terms ask for: some of logits, features, maps."""
    parts = {
        "logits and labels": "logits",
        "logits of the batch": "logits",
        "memory": "features",
    }
    compared = [TERMS[name] for name in variant if name != "ce"]
    return list(dict.fromkeys(parts.get(part, part) for part in compared))


def make_objective(
    variant: Mapping[str, Term], student: nn.Module, teacher: Teacher, labels: Tensor
) -> Objective:
    """A student's objective under a teacher.

    `variant` has the variant's terms, ce among them; `labels` int64 (N,) are those of all training
    images.
    """
    terms: dict[str, nn.Module] = {}
    for name, term in variant.items():
        if name == "ce":
            continue
        if TERMS[name] == "memory":
            terms[name] = Contrast(cast(int, student.feature_dim), teacher, labels, term.options)
        else:
            terms[name] = Comparison(name, teacher, term.options)
    return Objective(variant, terms)


class Comparison(nn.Module):
    """A loss without memory, on logits, features or maps.

    With `cache.top_k` all classes outside the k largest have the same logit.
    """

    def __init__(self, name: str, teacher: Teacher, options: Mapping[str, Any]):
        super().__init__()
        self.loss, self.compares = loss_function(name), TERMS[name]
        self.teacher, self.options = teacher, options

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        where = batch.ids, batch.view_ids
        if self.compares == "maps":
            return self._maps(output.maps, self.teacher.maps(*where))
        if self.compares == "features":
            pair = [output.features, self.teacher.features(*where)]
        else:
            pair = [output.logits, self.teacher.logits(*where)]
        if self.compares in ("features", "logits of the batch"):
            # Of several processes each has a part of the batch, and the loss is one of the whole.
            pair = [distributed.gather_batch(rows) for rows in pair]
        labels = [batch.labels] if self.compares == "logits and labels" else []
        return self.loss(*pair, *labels, **self.options)

    def _maps(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """The sum over the stages, as published; larger maps are averaged to the smaller size."""
        total = student[0].new_zeros(())
        for own, theirs in zip(student, teacher, strict=True):
            size = min(own.shape[2], theirs.shape[2]), min(own.shape[3], theirs.shape[3])
            pair = (F.adaptive_avg_pool2d(x, size) for x in (own, theirs))
            total = total + self.loss(*pair, **self.options)
        return total


class Contrast(nn.Module):
    """CRD between the student's features and its teacher's, by heads that are learned with it."""

    def __init__(
        self, feature_dim: int, teacher: Teacher, labels: Tensor, options: Mapping[str, Any]
    ):
        super().__init__()
        dim = options["dim"]
        banks = 2 * 4 * len(labels) * dim  # bytes
        memory.check("the banks of crd", banks, free_memory(labels.device), "lower its dim")
        self.memory = ContrastiveMemory(
            len(labels),
            dim,
            options["num_negatives"],
            options["temperature"],
            options["momentum"],
            labels,
            options["negatives"],
        )
        self.head = nn.Linear(feature_dim, dim)
        self.embedder = teacher.embedder(dim)
        tqdm.write(
            f"CRD: banks of {banks / 1e6:,.1f} MB on the {labels.device.type}, negatives "
            f"{NEGATIVES[self.memory.kind]}"
        )

    def draw(self, batch: Batch) -> Batch:
        """The batch with its negatives."""
        return batch._replace(negatives=self.memory.draw(batch.ids, batch.draw))

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        if batch.negatives is None:
            batch = self.draw(batch)
        student = unit(self.head(output.features))
        teacher = self.embedder(batch.ids, batch.view_ids)
        return self.memory(student, teacher, batch.ids, batch.negatives)
