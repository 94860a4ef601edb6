"""Contrastive representation distillation."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from richkd.base import distributed
from richkd.losses.check import check_positive

SHARED_ABOVE = 200_000  # samples; from there on products with the whole bank are most of a step


class ContrastiveMemory(nn.Module):
    """Contrastive representation distillation with a memory of all samples.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020. Each embedding is scored
    against the other side's bank at the sample itself and at `negatives` others; noise
    contrastive estimation tells the two apart. The loss is the student's term plus the teacher's.

    Several processes (`richkd.base.distributed`) hold equal banks: each computes the loss of its own
    part of the batch, and all banks move by the whole batch.

    Buffers, all moved by `.to`: `student_bank` and `teacher_bank` (num_samples, dim), float32 and
    uniform with unit expected squared norm; `student_normaliser` and `teacher_normaliser`, -1
    until the first batch fixes them (these four make the state dict); and the samples sorted by
    class, from which negatives are drawn. Gradients reach the embeddings, never the banks.

    Args:
        num_samples: size of the training set, at least 2.
        dim: length of an embedding.
        negatives: negatives drawn for a sample, at least 1.
        temperature: divides the scores; exp(1/temperature)·num_samples must fit the banks' dtype.
        momentum: share of its old value that a bank row keeps, in [0, 1).
        labels: (num_samples,) integers. Given, negatives come from other classes only; without
            them, from all other samples.
        shared: draw one set of negatives for the whole batch, not one a sample. The loss has the
            same expectation (see `draw`), and no step takes time or memory that grows with
            num_samples. By default so where num_samples is above SHARED_ABOVE.

    Raises:
        ValueError: an argument outside these ranges, labels of another length, or all of one
            class, so that no sample has a negative.
    """

    def __init__(
        self, num_samples, dim, negatives, temperature, momentum, labels=None, shared=None
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
        # Without labels every sample is a class of its own.
        labels = torch.arange(num_samples) if labels is None else torch.as_tensor(labels)
        if labels.shape != (num_samples,):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, must be ({num_samples},): one a sample"
            )
        _, class_of, size = labels.unique(return_inverse=True, return_counts=True)
        if len(size) == 1:
            raise ValueError(
                f"labels is {labels[0].item()} for every sample, must hold at least two classes: "
                "negatives come from other classes"
            )
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.shared = num_samples > SHARED_ABOVE if shared is None else shared
        bound = math.sqrt(3 / dim)
        for side in ("student", "teacher"):
            bank = torch.empty(num_samples, dim, dtype=torch.float32).uniform_(-bound, bound)
            self.register_buffer(f"{side}_bank", bank)
            self.register_buffer(f"{side}_normaliser", torch.tensor(-1.0))
        # Follow from labels, so they stay out of checkpoints.
        first = size.cumsum(0) - size
        self.register_buffer("order", class_of.argsort(stable=True), persistent=False)
        self.register_buffer("class_start", first[class_of], persistent=False)
        self.register_buffer("class_size", size[class_of], persistent=False)

    def draw(self, positive_index, generator=None):
        """Negatives for samples (batch,): int64 (batch, negatives), or (negatives,) where shared.

        A sample's own are uniform over the other classes (without labels: over the other samples),
        with replacement. A shared set is uniform over all samples: `forward` leaves out what is of
        a sample's class and weighs the others up to the same number, so that the loss is unbiased
        wherever one is left. Drawn on the banks' device, where positive_index and generator, if
        given, must live too; for the whole batch of all processes, of which a process keeps its
        own part, so that what is drawn does not depend on how many there are.
        """
        device = self.order.device
        if self.shared:
            return torch.randint(
                len(self.order), (self.negatives,), generator=generator, device=device
            )
        batch, processes = len(positive_index), distributed.processes()
        # randint takes no bound a row. Scaling a 31-bit integer and dropping 31 bits stays below
        # the bound in exact integers, on every device; no value is off its share by more than
        # num_samples/2³¹ of it (2e-5 at 50,000).
        word = torch.randint(
            2**31, (batch * processes, self.negatives), generator=generator, device=device
        )
        rank = word[batch * distributed.rank() :][:batch]
        start = self.class_start[positive_index][:, None]
        size = self.class_size[positive_index][:, None]
        rank.mul_(len(self.order) - size).bitwise_right_shift_(31)
        rank.add_(size * (rank >= start))  # past the positive's own class
        return self.order.index_select(0, rank.flatten()).view_as(rank)  # order[rank], faster

    def forward(self, student_embedding, teacher_embedding, positive_index, negative_index=None):
        """Scalar loss of unit rows (batch, dim); then moves the banks' rows positive_index.

        positive_index (batch,) int64, no sample twice; negative_index as `draw` gives it, any
        number of them, drawn where it is None. Nothing here waits for the device.
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

    def contrast(self, student_embedding, teacher_embedding, positive_index, negative_index):
        """The loss alone, of embeddings in the banks' dtype: the banks stay as they are."""
        allowed = None
        if negative_index.dim() == 1:
            classes = self.class_start[negative_index], self.class_start[positive_index]
            allowed = classes[0][None] != classes[1][:, None]
        index = positive_index, negative_index, allowed
        return _Contrast.apply(
            student_embedding, self.teacher_bank, *index, self.student_normaliser, self.temperature
        ) + _Contrast.apply(
            teacher_embedding, self.student_bank, *index, self.teacher_normaliser, self.temperature
        )

    @torch.no_grad()
    def update(self, positive_index, student_embedding, teacher_embedding):
        """Move the rows positive_index of both banks towards the embeddings."""
        for bank, embedding in (
            (self.student_bank, student_embedding),
            (self.teacher_bank, teacher_embedding),
        ):
            rows = self.momentum * bank[positive_index] + (1 - self.momentum) * embedding
            bank.index_copy_(0, positive_index, F.normalize(rows))


class _Contrast(torch.autograd.Function):
    """One side's term, and its gradient to the embedding, found at once.

    So nothing of the bank's size is kept for backward, and what a later step writes to the bank
    does not matter to it.
    """

    @staticmethod
    def forward(
        ctx, embedding, bank, positive_index, negative_index, allowed, normaliser, temperature
    ):
        batch, negatives = len(embedding), negative_index.shape[-1]
        own = bank[positive_index]
        positive = ((embedding * own).sum(1) / temperature).exp_()
        rows = bank if allowed is None else bank[negative_index]
        # Autocast may run the products in 16 bits; the exponentials and their sums need more.
        products = (embedding @ rows.T).to(bank.dtype)
        if allowed is None:
            # One product with the whole bank, then scalars: batch × bank numbers, not batch ×
            # negatives × dim. bench/crd.py has what that gains.
            negative = products.gather(1, negative_index)
            weigh = torch.Tensor.sum
        else:
            negative = products
            weight = allowed * (negatives / allowed.sum(1, keepdim=True).clamp_min(1))
            weigh = lambda values: values.mul(weight).sum()
        negative.div_(temperature).exp_()
        total = (positive.sum() + weigh(negative)) / (batch * (negatives + 1))
        first = distributed.mean(total) * len(bank)
        normaliser.copy_(torch.where(normaliser < 0, first, normaliser))

        positive.div_(normaliser)
        negative.div_(normaliser)
        noise = negatives / len(bank)
        floor = noise + 1e-7  # the epsilon is that of the published code: its numbers contain it
        loss = (positive / (positive + floor)).log().sum()
        # log(noise / (negative + floor)), which in 32 bits would lose most of its digits.
        loss = loss - weigh((negative + 1e-7).div_(noise).log1p_())

        pull = floor / (positive + floor)
        push = negative.div_(negative + floor)
        if allowed is None:
            push = products.zero_().scatter_add_(1, negative_index, push)
        else:
            push.mul_(weight)
        gradient = (push @ rows).to(bank.dtype) - pull[:, None] * own
        ctx.save_for_backward(gradient.div_(batch * temperature))
        return -loss / batch

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, *[None] * 6
