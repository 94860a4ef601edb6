"""Contrastive representation distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from richkd.base import distributed
from richkd.base.vectors import unit
from richkd.losses.check import check_positive

# Samples. In a larger set the products with the whole bank would be most of a step's time.
SHARED_ABOVE = 200_000
EPSILON = 1e-7  # of the published code: the published numbers contain it


class ContrastiveMemory(nn.Module):
    """Contrastive representation distillation with a memory of all samples.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020. Each embedding is scored
    against the other side's bank: at the sample itself (the positive) and at `negatives` other
    samples. Noise contrastive estimation tells the positive from the negatives. The loss is the
    student's term plus the teacher's.

    Several processes (`richkd.base.distributed`) hold equal banks: each process computes the loss
    of its own part of the batch, and all banks move by the whole batch.

    Buffers, all moved by `.to`: `banks` (2, num_samples, dim), the teacher's and the student's,
    float32 and uniform with unit expected squared norm; `normalisers` (2,), the student's and the
    teacher's, -1 until the first batch sets their values (these two make the state dict); and the
    samples sorted by class, from which negatives are drawn. `banks[i]` and `normalisers[i]` belong
    to one term: the student's embedding is scored against the teacher's bank. Gradients reach the
    embeddings, never the banks.

    Args:
        num_samples: size of the training set, at least 2.
        dim: length of an embedding.
        negatives: negatives drawn for a sample, at least 1.
        temperature: divides the scores; exp(1/temperature)·num_samples must fit the banks' dtype.
        momentum: the share of its old value that a bank row keeps, in [0, 1).
        labels: (num_samples,) integers. With labels, negatives come from other classes only;
            without labels, from all other samples.
        kind: how negatives are drawn. `per_sample`: for each sample, as published. `shared`: one
            set for the whole batch. The loss has the same expectation (see `draw`), and no step
            takes time or memory that grows with num_samples. `all`: nothing is drawn. Each sample
            of another class is a negative, and together they count as `negatives`. This loss is the
            expectation of the other two, so it has no sampling noise. `auto`: shared where
            num_samples is above SHARED_ABOVE, else per_sample.

    Raises:
        ValueError: an argument is outside its range, labels have another length, or all labels are
            of one class, so that no sample has a negative.
    """

    banks: Tensor
    normalisers: Tensor
    order: Tensor  # (2·num_samples,) the samples sorted by class, twice
    others: Tensor  # (num_samples, 2) where a sample's class ends in `order`, how many follow it

    def __init__(
        self,
        num_samples: int,
        dim: int,
        negatives: int,
        temperature: float,
        momentum: float,
        labels: Tensor | Sequence[int] | None = None,
        kind: Literal["auto", "per_sample", "shared", "all"] = "auto",
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
        self.kind = kind
        if kind == "auto":
            self.kind = "shared" if num_samples > SHARED_ABOVE else "per_sample"
        self._sort_by_class(num_samples, labels)
        bound = math.sqrt(3 / dim)
        self.register_buffer("banks", torch.empty(2, num_samples, dim, dtype=torch.float32))
        for bank in (self.student_bank, self.teacher_bank):
            bank.uniform_(-bound, bound)
        self.register_buffer("normalisers", torch.full((2,), -1.0))
        self.normalised = False  # whether a batch has surely set the normalisers

    @property
    def student_bank(self) -> Tensor:
        """The student's rows, (num_samples, dim): a view of `banks`."""
        return self.banks[1]

    @property
    def teacher_bank(self) -> Tensor:
        """The teacher's rows, (num_samples, dim): a view of `banks`."""
        return self.banks[0]

    @property
    def student_normaliser(self) -> Tensor:
        """The scalar of the student's term: a view of `normalisers`."""
        return self.normalisers[0]

    @property
    def teacher_normaliser(self) -> Tensor:
        """The scalar of the teacher's term: a view of `normalisers`."""
        return self.normalisers[1]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.normalised = False  # a state dict may hold normalisers that no batch has set

    def _sort_by_class(self, num_samples: int, labels: Tensor | Sequence[int] | None) -> None:
        """Register the buffers that follow from labels, and so stay out of checkpoints."""
        # Without labels every sample is a class of its own.
        labels = torch.arange(num_samples) if labels is None else torch.as_tensor(labels)
        if labels.shape != (num_samples,):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, must be ({num_samples},): one for each "
                "sample"
            )
        _, class_of, size = torch.unique(labels, return_inverse=True, return_counts=True)
        if len(size) == 1:
            raise ValueError(
                f"labels is {labels[0].item()} for every sample, must hold at least two classes: "
                "negatives come from other classes"
            )
        # Twice, so that the samples of all other classes lie side by side behind each class.
        order = class_of.argsort(stable=True).repeat(2)
        self.register_buffer("order", order, persistent=False)
        others = torch.stack([size.cumsum(0), num_samples - size], dim=1)
        self.register_buffer("others", others[class_of], persistent=False)

    def draw(
        self, positive_index: Tensor, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Negatives for samples (batch,): int64 (batch, negatives), or (negatives,) where shared.

        A sample's own negatives are uniform over the other classes (without labels: over the other
        samples), with replacement, and independent of each other. Any negative of one sample is
        independent of any negative of another sample, and mean and variance of the loss need no
        more: they are those of a batch whose draws are all independent. (The published code draws
        a sample's negatives without replacement where there are enough: the mean is the same.)

        A shared set is uniform over all samples. `forward` leaves out those of a sample's own class
        and gives the others a larger weight, so that together they count as `negatives`. So the
        loss is unbiased wherever at least one negative is left.

        None where every sample of another class counts.

        Drawn on the banks' device; positive_index and generator must live there, too. Each process
        draws for the whole batch of all processes and keeps its own part, so that the draw does not
        depend on the number of processes.
        """
        if self.kind == "all":
            return None
        device, samples = self.order.device, len(self.others)
        if self.kind == "shared":
            return torch.randint(samples, (self.negatives,), generator=generator, device=device)
        # Batch × negatives random numbers would take a tenth of a step's time on a CPU. So each
        # sample has a random number, and each place in a row has one. Their sums modulo 2³¹ are
        # uniform, and any two of them are independent. (An overflow changes nothing modulo 2³¹.)
        batch = len(positive_index)
        words = torch.empty(
            self.negatives + batch * distributed.processes(), dtype=torch.int64, device=device
        ).random_(generator=generator)
        of_place, of_sample = words[: self.negatives], words[self.negatives :]
        of_sample = of_sample[batch * distributed.rank() :][:batch]
        word = (of_place + of_sample[:, None]).bitwise_and_(2**31 - 1)
        # Multiplying 31 bits by the number of others and dropping 31 bits stays below that number
        # in exact integers, on every device. Each value's probability is off by at most a relative
        # num_samples/2³¹ (2e-5 at 50,000).
        end, number = self.others[positive_index].unsqueeze(2).unbind(1)
        place = word.mul_(number).bitwise_right_shift_(31).add_(end)
        return self.order.index_select(0, place.flatten()).view_as(place)  # order[place], faster

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
        student_embedding = student_embedding.to(self.banks.dtype)
        teacher_embedding = teacher_embedding.to(self.banks.dtype)
        loss = self.contrast(student_embedding, teacher_embedding, positive_index, negative_index)
        self.normalised = True
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
        negative_index: Tensor | None,
    ) -> Tensor:
        """The scalar loss alone, of embeddings in the banks' dtype: the banks stay as they are.

        negative_index is None where every sample of another class counts.
        """
        pairs = self._pairs(positive_index, negative_index)
        loss: Tensor = _Contrast.apply(
            student_embedding,
            teacher_embedding,
            self.banks,
            self.normalisers,
            pairs,
            self.temperature,
            not self.normalised,
        )
        return loss

    def _pairs(self, positive: Tensor, negative: Tensor | None) -> _Pairs:
        if negative is not None and negative.dim() == 2:
            number = negative.shape[1]
            return _Pairs(positive, number, drawn=negative, counted=number)
        # Where a class ends tells it from the others.
        every = self.others[:, 0] if negative is None else self.others[negative, 0]
        end, others = self.others[positive].unbind(1)
        excluded = every == end[:, None]
        dtype = self.banks.dtype
        if negative is None:
            number, counted = self.negatives, others.to(dtype)
        else:
            number = len(negative)
            counted = number - excluded.sum(1, dtype=dtype)
        weight = number / counted.clamp_min(1)
        return _Pairs(positive, number, negative, None, excluded, counted, weight)

    @torch.no_grad()
    def update(
        self, positive_index: Tensor, student_embedding: Tensor, teacher_embedding: Tensor
    ) -> None:
        """Move the rows positive_index of both banks towards the embeddings."""
        rows = torch.stack((teacher_embedding, student_embedding))
        rows = rows.lerp_(self.banks.index_select(1, positive_index), self.momentum)
        self.banks.index_copy_(1, positive_index, unit(rows))


class _Pairs(NamedTuple):
    """The bank rows that each embedding of a batch is scored against."""

    positive: Tensor  # (batch,) int64
    number: int  # all negatives of a sample together count as so many
    rows: Tensor | None = None  # (n,) int64 of the negatives; None for the whole bank
    drawn: Tensor | None = None  # (batch, n) int64: each sample's own of these
    excluded: Tensor | None = None  # else (batch, n) bool: of the sample's own class
    counted: Tensor | int = 0  # (batch,) how many are not excluded, in the banks' dtype
    weight: Tensor | None = None  # (batch,) of a negative; None where it is 1


class _Contrast(torch.autograd.Function):
    """Both terms and their gradients to the embeddings, all computed in the forward pass.

    So backward needs nothing of the banks' size, and a later step may write to the banks before
    backward runs.
    """

    @staticmethod
    def forward(  # its arguments are torch's to pass on: they cannot be one
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        banks: Tensor,
        normalisers: Tensor,
        pairs: _Pairs,
        temperature: float,
        first: bool,
    ) -> Tensor:
        loss: Tensor
        embeddings = torch.stack((student, teacher)).div_(temperature)
        if banks.is_cpu:  # one term after the other: half the memory, and more of it in the cache
            sides = zip(embeddings, banks, normalisers)
            losses, gradients = zip(*(_term(*side, pairs, first) for side in sides))
            loss, gradient = torch.stack(losses).sum(), torch.stack(gradients)
        else:  # both in one kernel each
            loss, gradient = _term(embeddings, banks, normalisers, pairs, first)
        ctx.save_for_backward(gradient)
        ctx.scale = 1 / (len(student) * temperature)
        return loss / len(student)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        student, teacher = gradient * (upstream * ctx.scale)
        return student, teacher, None, None, None, None, None


def _term(
    embeddings: Tensor, banks: Tensor, normalisers: Tensor, pairs: _Pairs, first: bool
) -> tuple[Tensor, Tensor]:
    """The batch's loss, and its gradient to the embeddings (..., batch, dim), which are already
    divided by the temperature; banks (..., samples, dim) and normalisers (...) likewise of one term
    or of both. `first`: the normalisers may have no values yet.

    Noise contrastive estimation is logistic regression. With the logit
    l = score/temperature - log(normaliser · (noise + epsilon)) the published
    -log(p / (p + noise + epsilon)) of a positive is softplus(-l), and
    -log(noise / (p + noise + epsilon)) of a negative is softplus(l) + log(1 + epsilon/noise).
    """
    samples, weight = banks.shape[-2], pairs.weight
    noise = pairs.number / samples
    own = banks.index_select(-2, pairs.positive)
    positive = torch.linalg.vecdot(embeddings, own).to(banks.dtype)
    rows = banks if pairs.rows is None else banks.index_select(-2, pairs.rows)
    # Autocast may run the products in 16 bits; the exponentials and their sums need more.
    products = (embeddings @ rows.mT).to(banks.dtype)
    if pairs.drawn is not None:
        # One product with the whole bank, then scalars. That is batch × bank numbers instead of
        # batch × negatives × dim; bench/crd.py measures the gain.
        where = pairs.drawn.expand(*products.shape[:-1], -1)
        logits = products.gather(-1, where)
    else:
        assert pairs.excluded is not None
        logits = products.masked_fill_(pairs.excluded, -math.inf)
    if first:
        total = logits.exp().sum(-1)
        total = positive.exp() + (total if weight is None else total * weight)
        _normalise(normalisers, total, samples / (pairs.number + 1))

    offset = (normalisers * (noise + EPSILON)).log()[..., None]
    positive = offset - positive  # from here on the logit's negative
    logits.sub_(offset[..., None])
    loss = F.softplus(logits, threshold=50).sum(-1) + pairs.counted * math.log1p(EPSILON / noise)
    if weight is not None:
        loss = loss * weight
    loss = (loss + F.softplus(positive, threshold=50)).sum()

    push, pull = logits.sigmoid_(), positive.sigmoid_()
    if pairs.drawn is not None:
        push = products.zero_().scatter_add_(-1, where, push)
    gradient = _times(push, rows).to(banks.dtype)
    if weight is not None:
        gradient.mul_(weight[:, None])
    return loss, gradient.addcmul_(pull[..., None], own, value=-1)


def _normalise(normalisers: Tensor, total: Tensor, scale: float) -> None:
    """Set the normalisers that no batch has set: the mean of `total` (..., batch) times scale."""
    found = distributed.mean(total.mean(-1)) * scale
    normalisers.copy_(torch.where(normalisers < 0, found, normalisers))


def _times(push: Tensor, rows: Tensor) -> Tensor:
    """push @ rows, (..., batch, n) times (..., n, dim).

    One matrix after the other: for two such long sums in one call cuBLAS takes a kernel that leaves
    most of a GPU idle, and 18 times as long (H200, torch 2.11, fp32, n 50,000).
    """
    if push.dim() == 2:
        return push @ rows
    return torch.stack([one @ other for one, other in zip(push, rows)])
