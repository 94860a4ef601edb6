"""Contrastive distillation, one step: ours beside the gathers of the published code.

A step is drawing the negatives, the loss, its gradient to both embeddings and the update of both
banks. The plain way (Tian et al., ICLR 2020) draws with numpy, a sample at a time, here with
replacement as ours does, and gathers (batch, K + 1, dim) from each bank. Ours draws on the device
and multiplies with the whole bank. Published code draws in the data loader's workers: so the rows
are the step, the step with negatives that are drawn already, and drawing alone. The last row is
our step with one set of negatives shared by the batch, beside the same plain step.
Run it: `python -m bench.crd`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.common import (
    CIFAR100,
    PAGE_MIB,
    Case,
    Sizes,
    alternate,
    peak_memory,
    report,
    speedup,
    spread,
)
from richkd.engine import pick_device
from richkd.losses import ContrastiveMemory

# Embeddings of student and teacher, positives, negatives; returns the loss.
Memory = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class PlainMemory:
    """The published loss on copies of the banks that `memory` starts with.

    `labels` int64 (N,) are those of all samples.
    """

    def __init__(self, memory: ContrastiveMemory, labels: np.ndarray):
        self.banks = [memory.teacher_bank.clone(), memory.student_bank.clone()]
        self.normalisers: list[Tensor | None] = [None, None]
        self.negatives, self.temperature = memory.negatives, memory.temperature
        self.momentum = memory.momentum
        self.labels = labels
        # By class, the samples of all other classes.
        self.others = [np.flatnonzero(labels != c) for c in range(labels.max() + 1)]

    def draw(self, positive_index: Tensor) -> Tensor:
        """Negatives of the samples (B,): int64 (B, K)."""
        labels = self.labels[positive_index.cpu().numpy()]
        rows = [np.random.choice(self.others[label], self.negatives) for label in labels]
        return torch.from_numpy(np.stack(rows)).to(positive_index.device)

    def __call__(
        self, student: Tensor, teacher: Tensor, positive_index: Tensor, negative_index: Tensor
    ) -> Tensor:
        index = torch.cat([positive_index[:, None], negative_index], dim=1)
        # Both gathers are made before either is used, as published: backward needs both anyway.
        gathered = [
            bank.index_select(0, index.flatten()).view(*index.shape, -1) for bank in self.banks
        ]
        loss = student.new_zeros(())
        for side, embedding in enumerate((student, teacher)):
            scores = torch.bmm(gathered[side], embedding[:, :, None]).squeeze(2)
            scores = torch.exp(scores / self.temperature)
            normaliser = self.normalisers[side]
            if normaliser is None:
                normaliser = scores.mean().detach() * len(self.banks[side])
                self.normalisers[side] = normaliser
            probability = scores / normaliser
            noise = negative_index.shape[1] / len(self.banks[side])
            positive, negative = probability[:, 0], probability[:, 1:]
            positive = torch.log(positive / (positive + noise + 1e-7))
            negative = torch.log(noise / (negative + noise + 1e-7))
            loss = loss - (positive.sum() + negative.sum()) / len(index)
        with torch.no_grad():
            for bank, embedding in zip(self.banks, (teacher, student)):
                old = bank.index_select(0, positive_index)
                rows = self.momentum * old + (1 - self.momentum) * embedding
                bank.index_copy_(0, positive_index, F.normalize(rows))
        return loss


class Problem:
    """The labels, embeddings and samples of one step, and a memory for them, all from `seed`."""

    def __init__(self, sizes: Sizes, device: torch.device, seed: int = 0, shared: bool = False):
        torch.manual_seed(seed)
        self.labels = torch.arange(sizes.samples) % sizes.classes
        memory = ContrastiveMemory(
            sizes.samples,
            sizes.dim,
            sizes.negatives,
            0.07,
            0.5,
            self.labels,
            "shared" if shared else "per_sample",
        )
        self.memory = memory.to(device)
        student, teacher = (
            F.normalize(torch.randn(sizes.batch_size, sizes.dim, device=device)).requires_grad_()
            for _ in range(2)
        )
        self.embeddings = student, teacher
        self.ids = torch.randperm(sizes.samples)[: sizes.batch_size].to(device)
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self) -> Tensor:
        return self.memory.draw(self.ids, self.generator)

    def step(self, memory: Memory, negative_index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of `memory` and its gradient to both embeddings; the banks move."""
        loss = memory(*self.embeddings, self.ids, negative_index)
        return loss, torch.autograd.grad(loss, self.embeddings)


def main(*, sizes: Sizes = CIFAR100, repeats: int = 7) -> None:
    device = pick_device()
    problem = Problem(sizes, device)
    plain = PlainMemory(problem.memory, problem.labels.numpy())
    np.random.seed(0)
    difference = agree(problem, plain)

    drawn = problem.draw()
    sharing = Problem(sizes, device, shared=True)
    cases: dict[str, dict[str, Case]] = {
        "step": {
            "plain": lambda: problem.step(plain, plain.draw(problem.ids)),
            "ours": lambda: problem.step(problem.memory, problem.draw()),
        },
        "no drawing": {
            "plain": lambda: problem.step(plain, drawn),
            "ours": lambda: problem.step(problem.memory, drawn),
        },
        "drawing": {"plain": lambda: plain.draw(problem.ids), "ours": problem.draw},
        "shared": {
            "plain": lambda: problem.step(plain, plain.draw(problem.ids)),
            "ours": lambda: sharing.step(sharing.memory, sharing.draw()),
        },
    }
    rows = {}
    for name, ways in cases.items():
        times = alternate(ways, repeats)
        memory = {way: peak_memory(case) for way, case in ways.items()}
        for way, each in times.items():
            rows[f"{name}, {way}"] = spread("s", each) | {"extra_mib": memory[way]}
        rows[f"{name}, ours"] |= speedup(times["plain"], times["ours"])
        rows[f"{name}, ours"]["memory_ratio"] = memory["plain"] / max(memory["ours"], PAGE_MIB)
    report(
        "crd",
        rows,
        goal="step at least 15 times as fast, extra memory at most 1/20",
        **sizes._asdict(),
        repeats=repeats,
        largest_relative_difference=difference,
    )


def agree(problem: Problem, plain: PlainMemory, steps: int = 2) -> float:
    """The largest relative difference of losses and gradients, given the same negatives.

    The second step sees the banks as the first step's update left them. ValueError above 1e-4.
    """
    worst = 0.0
    for _ in range(steps):
        negative_index = problem.draw()
        loss, gradients = problem.step(problem.memory, negative_index)
        expected_loss, expected_gradients = problem.step(plain, negative_index)
        for actual, expected in zip((loss, *gradients), (expected_loss, *expected_gradients)):
            error = (actual - expected).abs().max() / expected.abs().max()
            worst = max(worst, error.item())
    if not worst < 1e-4:
        raise ValueError(f"ours and the plain way differ by {worst:.2g}, must be below 1e-4")
    return worst


if __name__ == "__main__":
    main()
