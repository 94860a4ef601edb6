"""Contrastive distillation, one step: ours beside the gathers of the published code.

A step is drawing the negatives, the loss, its gradient to both embeddings and the update of both
banks. The plain way (Tian et al., ICLR 2020) draws with numpy a sample at a time, here with
replacement as ours does, and gathers (batch, K + 1, dim) from each bank; ours draws on the device
and multiplies with the whole bank. Published code draws in the data loader's workers: so the rows
are the step, the step with its negatives at hand, and drawing alone. Last comes the step with one
set of negatives shared by the batch, beside the same plain step.
Run it: `python -m bench.crd`.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.common import PAGE_MIB, alternate, peak_memory, report, speedup, spread
from richkd.engine import start
from richkd.losses import ContrastiveMemory


class PlainMemory:
    """The published loss on copies of the banks that `memory` starts with."""

    def __init__(self, memory: ContrastiveMemory, labels: np.ndarray):
        self.banks = [memory.teacher_bank.clone(), memory.student_bank.clone()]
        self.normalisers = [None, None]
        self.negatives, self.temperature = memory.negatives, memory.temperature
        self.momentum = memory.momentum
        self.labels = labels
        self.others = [np.flatnonzero(labels != c) for c in range(labels.max() + 1)]

    def draw(self, positive_index: Tensor) -> Tensor:
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
        loss = 0
        for side, embedding in enumerate((student, teacher)):
            scores = torch.bmm(gathered[side], embedding[:, :, None]).squeeze(2)
            scores = torch.exp(scores / self.temperature)
            if self.normalisers[side] is None:
                self.normalisers[side] = scores.mean().detach() * len(self.banks[side])
            probability = scores / self.normalisers[side]
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
    """Labels, embeddings and samples of one step, and a memory for them, all from `seed`."""

    def __init__(self, samples, negatives, batch_size, dim, classes, device, seed=0, shared=False):
        torch.manual_seed(seed)
        self.labels = torch.arange(samples) % classes
        memory = ContrastiveMemory(samples, dim, negatives, 0.07, 0.5, self.labels, shared)
        self.memory = memory.to(device)
        self.embeddings = [
            F.normalize(torch.randn(batch_size, dim, device=device)).requires_grad_()
            for _ in range(2)
        ]
        self.ids = torch.randperm(samples)[:batch_size].to(device)
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self) -> Tensor:
        return self.memory.draw(self.ids, self.generator)

    def step(self, memory, negative_index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of `memory` and its gradient to both embeddings; the banks move."""
        loss = memory(*self.embeddings, self.ids, negative_index)
        return loss, torch.autograd.grad(loss, self.embeddings)


def main(samples=50_000, negatives=16_384, batch_size=64, dim=128, classes=100, repeats=7) -> None:
    device = start()
    problem = Problem(samples, negatives, batch_size, dim, classes, device)
    plain = PlainMemory(problem.memory, problem.labels.numpy())
    np.random.seed(0)
    difference = agree(problem, plain)

    at_hand = problem.draw()
    sharing = Problem(samples, negatives, batch_size, dim, classes, device, shared=True)
    cases = {
        "step": (
            lambda: problem.step(plain, plain.draw(problem.ids)),
            lambda: problem.step(problem.memory, problem.draw()),
        ),
        "no drawing": (
            lambda: problem.step(plain, at_hand),
            lambda: problem.step(problem.memory, at_hand),
        ),
        "drawing": (lambda: plain.draw(problem.ids), problem.draw),
        "shared": (
            lambda: problem.step(plain, plain.draw(problem.ids)),
            lambda: sharing.step(sharing.memory, sharing.draw()),
        ),
    }
    rows = {}
    for name, (baseline, ours) in cases.items():
        times = alternate({"plain": baseline, "ours": ours}, repeats)
        memory = {key: peak_memory(case) for key, case in (("plain", baseline), ("ours", ours))}
        for key, each in times.items():
            rows[f"{name}, {key}"] = spread("s", each) | {"extra_mib": memory[key]}
        rows[f"{name}, ours"] |= speedup(times["plain"], times["ours"])
        rows[f"{name}, ours"]["memory_ratio"] = memory["plain"] / max(memory["ours"], PAGE_MIB)
    report(
        "crd", rows, goal="step at least 15 times as fast, extra memory at most 1/20", samples=samples, negatives=negatives, batch_size=batch_size, dim=dim,
        classes=classes, repeats=repeats, largest_relative_difference=difference,
    )  # fmt: skip


def agree(problem: Problem, plain: PlainMemory, steps: int = 2) -> float:
    """The largest relative difference of losses and gradients, given the same negatives.

    A second step sees the banks as the first one's update left them. ValueError above 1e-4.
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
