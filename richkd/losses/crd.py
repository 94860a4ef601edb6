"""Contrastive representation distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from richkd.base import distributed
from richkd.losses.check import check_positive

# Samples. In a larger set the products with the whole bank would be most of a step's time.
SHARED_ABOVE = 200_000


class ContrastiveMemory(nn.Module):
    """Contrastive representation distillation with a memory of all samples.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020. Each embedding is scored
    against the other side's bank: at the sample itself (the positive) and at `negatives` other
    samples. Noise contrastive estimation tells the positive from the negatives. The loss is the
    student's term plus the teacher's.

    Several processes (`richkd.base.distributed`) hold equal banks: each process computes the loss
    of its own part of the batch, and all banks move by the whole batch.

    Buffers, all moved by `.to`: `student_bank` and `teacher_bank` (num_samples, dim), float32 and
    uniform with unit expected squared norm; `student_normaliser` and `teacher_normaliser`, scalars,
    -1 until the first batch sets their values (these four make the state dict); and the samples
    sorted by class, from which negatives are drawn. Gradients reach the embeddings, never the
    banks.

    Args:
        num_samples: size of the training set, at least 2.
        dim: length of an embedding.
        negatives: negatives drawn for a sample, at least 1.
        temperature: divides the scores; exp(1/temperature)·num_samples must fit the banks' dtype.
        momentum: the share of its old value that a bank row keeps, in [0, 1).
        labels: (num_samples,) integers. With labels, negatives come from other classes only;
            without labels, from all other samples.
        shared: draw one set of negatives for the whole batch, not one for each sample. The loss has
            the same expectation (see `draw`), and no step takes time or memory that grows with
            num_samples. The default, None, means shared where num_samples is above SHARED_ABOVE.

    Raises:
        ValueError: an argument is outside its range, labels have another length, or all labels are
            of one class, so that no sample has a negative.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    student_normaliser: Tensor
    teacher_normaliser: Tensor
    order: Tensor  # (num_samples,) the samples sorted by class
    class_start: Tensor  # (num_samples,) where the class of each sample begins in `order`
    class_size: Tensor  # (num_samples,) how many samples the class of each sample has

    def __init__(
        self,
        num_samples: int,
        dim: int,
        negatives: int,
        temperature: float,
        momentum: float,
        labels: Tensor | Sequence[int] | None = None,
        shared: bool | None = None,
    ):
        super().__init__()
        for name, value, least in (
            ("num_samples", num_samples, 2),
            ("dim", dim, 1),
            ("negatives", negatives, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, must be at least {least}")
        check_positive("temperature", temperature)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, must be in [0, 1)")
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.shared = num_samples > SHARED_ABOVE if shared is None else shared
        self._sort_by_class(num_samples, labels)
        bound = math.sqrt(3 / dim)
        for side in ("student", "teacher"):
            bank = torch.empty(num_samples, dim, dtype=torch.float32).uniform_(-bound, bound)
            self.register_buffer(f"{side}_bank", bank)
            self.register_buffer(f"{side}_normaliser", torch.tensor(-1.0))

    def _sort_by_class(self, num_samples: int, labels: Tensor | Sequence[int] | None) -> None:
        """Register the buffers that follow from labels, and so stay out of checkpoints."""
        # Without labels every sample is a class of its own.
        labels = torch.arange(num_samples) if labels is None else torch.as_tensor(labels)
        if labels.shape != (num_samples,):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, must be ({num_samples},): one a sample"
            )
        _, class_of, size = torch.unique(labels, return_inverse=True, return_counts=True)
        if len(size) == 1:
            raise ValueError(
                f"labels is {labels[0].item()} for every sample, must hold at least two classes: "
                "negatives come from other classes"
            )
        first = size.cumsum(0) - size
        self.register_buffer("order", class_of.argsort(stable=True), persistent=False)
        self.register_buffer("class_start", first[class_of], persistent=False)
        self.register_buffer("class_size", size[class_of], persistent=False)

    def draw(self, positive_index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Negatives for samples (batch,): int64 (batch, negatives), or (negatives,) where shared.

        A sample's own negatives are uniform over the other classes (without labels: over the other
        samples), with replacement. A shared set is uniform over all samples. `forward` leaves out
        those of a sample's own class and gives the others a larger weight, so that together they
        count as `negatives`. So the loss is unbiased wherever at least one negative is left.

        Drawn on the banks' device; positive_index and generator must live there, too. Each process
        draws for the whole batch of all processes and keeps its own part, so that the draw does not
        depend on the number of processes.
        """
        device = self.order.device
        if self.shared:
            return torch.randint(
                len(self.order), (self.negatives,), generator=generator, device=device
            )
        batch, processes = len(positive_index), distributed.processes()
        # randint has one bound for all rows, but here each row has its own. Multiplying a 31-bit
        # integer by the bound and dropping 31 bits stays below the bound in exact integers, on
        # every device. Each value's probability is off by at most a relative num_samples/2³¹
        # (2e-5 at 50,000).
        word = torch.randint(
            2**31, (batch * processes, self.negatives), generator=generator, device=device
        )
        rank = word[batch * distributed.rank() :][:batch]
        start = self.class_start[positive_index][:, None]
        size = self.class_size[positive_index][:, None]
        rank.mul_(len(self.order) - size).bitwise_right_shift_(31)
        rank.add_(size * (rank >= start))  # skip the positive's own class
        return self.order.index_select(0, rank.flatten()).view_as(rank)  # order[rank], faster

    def forward(
        self,
        student_embedding: Tensor,
        teacher_embedding: Tensor,
        positive_index: Tensor,
        negative_index: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss of unit rows (batch, dim); then moves the banks' rows positive_index.

        positive_index (batch,) int64, each sample at most once; negative_index as `draw` returns
        it, but of any number of negatives; None draws them. The host never waits for the device.
        """
        if negative_index is None:
            negative_index = self.draw(positive_index)
        student_embedding = student_embedding.to(self.student_bank.dtype)
        teacher_embedding = teacher_embedding.to(self.teacher_bank.dtype)
        loss = self.contrast(student_embedding, teacher_embedding, positive_index, negative_index)
        gathered = (
            distributed.gather(tensor.detach())
            for tensor in (positive_index, student_embedding, teacher_embedding)
        )
        self.update(*gathered)
        return loss

    def contrast(
        self,
        student_embedding: Tensor,
        teacher_embedding: Tensor,
        positive_index: Tensor,
        negative_index: Tensor,
    ) -> Tensor:
        """The scalar loss alone, of embeddings in the banks' dtype: the banks stay as they are."""
        allowed = None
        if negative_index.dim() == 1:
            classes = self.class_start[negative_index], self.class_start[positive_index]
            allowed = classes[0][None] != classes[1][:, None]
        pairs = _Pairs(positive_index, negative_index, allowed)
        loss: Tensor = _Contrast.apply(
            student_embedding, self.teacher_bank, pairs, self.student_normaliser, self.temperature
        ) + _Contrast.apply(
            teacher_embedding, self.student_bank, pairs, self.teacher_normaliser, self.temperature
        )
        return loss

    @torch.no_grad()
    def update(
        self, positive_index: Tensor, student_embedding: Tensor, teacher_embedding: Tensor
    ) -> None:
        """Move the rows positive_index of both banks towards the embeddings."""
        for bank, embedding in (
            (self.student_bank, student_embedding),
            (self.teacher_bank, teacher_embedding),
        ):
            rows = self.momentum * bank[positive_index] + (1 - self.momentum) * embedding
            bank.index_copy_(0, positive_index, F.normalize(rows))


class _Pairs(NamedTuple):
    """The bank rows that each embedding is scored against."""

    positive: Tensor  # (batch,) int64
    negative: Tensor  # (batch, negatives) int64, or (negatives,) where the batch shares one set
    allowed: Tensor | None  # (batch, negatives) bool where shared: of another class than the sample


class _Contrast(torch.autograd.Function):
    """One side's term and its gradient to the embedding, both computed in the forward pass.

    So backward needs nothing of the bank's size, and a later step may write to the bank before
    backward runs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        bank: Tensor,
        pairs: _Pairs,
        normaliser: Tensor,
        temperature: float,
    ) -> Tensor:
        batch, negatives = len(embedding), pairs.negative.shape[-1]
        weight = None  # of each negative; None where all count alike
        if pairs.allowed is not None:
            weight = pairs.allowed * (negatives / pairs.allowed.sum(1, keepdim=True).clamp_min(1))

        def weighted_sum(values: Tensor) -> Tensor:
            return values.sum() if weight is None else values.mul(weight).sum()

        own = bank[pairs.positive]
        positive = ((embedding * own).sum(1) / temperature).exp_()
        rows = bank if weight is None else bank[pairs.negative]
        # Autocast may run the products in 16 bits; the exponentials and their sums need more.
        products = (embedding @ rows.T).to(bank.dtype)
        # Without a shared set: one product with the whole bank, then scalars. That is batch × bank
        # numbers instead of batch × negatives × dim; bench/crd.py measures the gain.
        negative = products.gather(1, pairs.negative) if weight is None else products
        negative.div_(temperature).exp_()
        total = (positive.sum() + weighted_sum(negative)) / (batch * (negatives + 1))
        first = distributed.mean(total) * len(bank)
        normaliser.copy_(torch.where(normaliser < 0, first, normaliser))

        positive.div_(normaliser)
        negative.div_(normaliser)
        noise = negatives / len(bank)
        floor = noise + 1e-7  # the epsilon of the published code: the published numbers contain it
        loss = (positive / (positive + floor)).log().sum()
        # log(noise / (negative + floor)) in another form: as written, 32 bits lose most digits.
        loss = loss - weighted_sum((negative + 1e-7).div_(noise).log1p_())

        pull = floor / (positive + floor)
        push = negative.div_(negative + floor)
        if weight is None:
            push = products.zero_().scatter_add_(1, pairs.negative, push)
        else:
            push.mul_(weight)
        gradient = (push @ rows).to(bank.dtype) - pull[:, None] * own
        ctx.save_for_backward(gradient.div_(batch * temperature))
        return -loss / batch

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None
