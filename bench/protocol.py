"""Training as preset cifar100 has it, on random images and random tables of its shapes."""

import contextlib
import io
from collections.abc import Sequence

import torch
from torch import nn

from bench.common import Case
from richkd import models
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.losses import ContrastiveMemory
from richkd.params import Runtime, Training
from richkd.teachers.lookup import Table
from richkd.train.fit import Run
from richkd.train.objective import Objective
from richkd.train.terms import FusedContrast, LogitDistillation, fused_logits

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]  # CIFAR-100's
SIDE, PAD, CLASSES, CLIP_DIM = 32, 4, 100, 768
CE_WEIGHT, LOGIT_WEIGHT, FEATURE_WEIGHT = 1.0, 3.0, 0.8
TEMPERATURE, ALPHA, LAM, CRD_TEMPERATURE, CRD_MOMENTUM = 3.0, 0.7, 0.7, 0.07, 0.5
ENDLESS = 1_000_000  # epochs
RUNTIME = {
    "device": "auto", "precision": "fp32", "deterministic": False, "step": "auto", "seeds_at_once": 1
}  # fmt: skip


class NoCheckpoint:
    """Saving is what a run does once an epoch, whose steps are few here."""

    def load(self, device: torch.device) -> None:
        return None

    def save(self, **state: object) -> None:
        pass


class Protocol:
    """The data of `held` images, with CRD banks and labels for all `samples`, and the tables."""

    def __init__(
        self,
        *,
        samples: int,
        held: int,
        negatives: int,
        dim: int,
        batch_size: int,
        teacher_dim: int,
        device: torch.device,
    ):
        torch.manual_seed(0)
        self.labels = torch.randint(CLASSES, (samples,))
        self.negatives, self.dim, self.batch_size = negatives, dim, batch_size
        pixels = torch.randint(256, (held, SIDE, SIDE, 3), dtype=torch.uint8)
        self.split = Split(pixels.numpy(), self.labels[:held].numpy())
        self.data = ResidentSet(self.split, MEAN, STD, Views(SIDE, SIDE, PAD, True), device)

        def table(views: int, feature_dim: int) -> Table:
            kind = {"dtype": torch.float16, "device": device}
            return Table(*(torch.randn(views, held, d, **kind) for d in (CLASSES, feature_dim)))

        self.teacher, self.clip = table(len(self.data.views), teacher_dim), table(1, CLIP_DIM)

    def objective(self, variant: str, model: nn.Module, shared: bool | None = None) -> Objective:
        """That of `variant`, on the device of the data."""
        terms = {}
        if variant in ("kd", "L", "LF"):
            fused = fused_logits(self.teacher, self.clip, ALPHA)
            logits = self.teacher.logits if variant == "kd" else fused
            terms["kd"] = (LOGIT_WEIGHT, LogitDistillation(logits, TEMPERATURE))
        if "F" in variant:
            memory = ContrastiveMemory(
                len(self.labels), self.dim, self.negatives, CRD_TEMPERATURE, CRD_MOMENTUM,
                self.labels, shared,
            )  # fmt: skip
            contrast = FusedContrast(model.feature_dim, self.teacher, self.clip, LAM, memory)
            terms["crd"] = (FEATURE_WEIGHT, contrast)
        return Objective(CE_WEIGHT, **terms).to(self.data.device)

    def run(
        self,
        arch: str,
        variant: str,
        *,
        seed: int = 0,
        shared: bool | None = None,
        **runtime: object,
    ) -> Run:
        """A run without end, not begun."""
        torch.manual_seed(seed)
        model = models.create(arch, CLASSES)
        model.to(self.data.device, memory_format=torch.channels_last)
        training = Training(
            arch=arch, epochs=ENDLESS, batch_size=self.batch_size, lr=0.05, schedule="step",
            milestones=(), momentum=0.9, weight_decay=5e-4,
        )  # fmt: skip
        nothing = torch.zeros(0, 3, SIDE, SIDE), self.data.labels[:0]
        objective = self.objective(variant, model, shared)
        how = Runtime(**RUNTIME | runtime)
        return Run(
            model, objective, self.data, nothing, training, seed, how, NoCheckpoint(), variant
        )


def stepper(runs: Sequence[Run], steps: int) -> Case:
    """`steps` steps of each run, in turn as `richkd.fit.fit` takes them."""
    ahead = [(run, run.train()) for run in runs]

    def case() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # the bars
            for _ in range(steps):
                for run, taken in ahead:
                    with torch.cuda.stream(run.stream):
                        next(taken)

    return case
