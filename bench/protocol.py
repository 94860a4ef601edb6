"""Training as preset cifar100 has it, on random images and random tables of the preset's shapes."""

import contextlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bench.common import Case, Sizes
from richkd import models
from richkd.base.resume import Checkpoint
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Preprocessing, Views
from richkd.params import Ce, Crd, Kd, Runtime, Term, Training
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import Recipe
from richkd.teachers.table import Table
from richkd.train.fit import Plan, Run, Sources
from richkd.train.terms import make_objective

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]  # CIFAR-100's
PREPROCESSING = Preprocessing(MEAN, STD)
SIDE, PAD, CLIP_DIM = 32, 4, 768
ALPHA, LAM = 0.7, 0.7
KD = Kd(weight=3.0, temperature=3.0)
TERMS = {"ce": (), "kd": ("kd",), "L": ("kd",), "F": ("crd",), "LF": ("kd", "crd")}  # beside ce
Negatives = Literal["auto", "all", "per_sample", "shared"]
ENDLESS = 1_000_000  # epochs
RUNTIME = Runtime(
    device="auto", precision="fp32", deterministic=False, step="auto", seeds_at_once=1, tf32=False
)


class Networks(NamedTuple):
    """The architectures of teacher and student."""

    teacher: str
    student: str


NETWORKS = Networks("resnet32x4", "resnet8x4")


class NoCheckpoint(Checkpoint):
    """A run saves its state at the end of each epoch. Benchmarks of a step do without that."""

    def __init__(self) -> None:
        super().__init__("bench", "")

    def load(self, device: torch.device) -> None:
        return None

    def save(self, **state: Any) -> None:
        pass


class Protocol:
    """Random images, and what training on them needs: views, labels and the teachers' tables.

    There are `images` images; labels and CRD's banks have `sizes.samples` rows, as for the whole
    training set. The teacher's table has all views and features of length `teacher_dim`, CLIP's has
    the centre view. With `checkpoints` runs save their state, below the working folder.
    """

    def __init__(
        self,
        sizes: Sizes,
        images: int,
        teacher_dim: int,
        device: torch.device,
        checkpoints: bool = False,
    ):
        torch.manual_seed(0)
        self.names = (f"bench-{number}" for number in itertools.count())
        self.checkpoints = checkpoints
        self.sizes = sizes
        self.labels = torch.randint(sizes.classes, (sizes.samples,))
        self.split = random_images(self.labels[:images])
        self.data = ResidentSet(self.split, PREPROCESSING, Views(SIDE, SIDE, PAD, True), device)
        self.teacher = self._table(len(self.data.views), teacher_dim)
        self.clip = self._table(1, CLIP_DIM)
        recipe = Recipe(ALPHA, LAM, {"teacher": 1.0, "clip": 1.0}, {})
        self.fused = Fused(recipe, self.teacher, self.clip)

    def _table(self, views: int, feature_dim: int) -> Table:
        widths = {"logits": self.sizes.classes, "features": feature_dim}
        shape = views, len(self.data)
        parts = {
            name: torch.randn(*shape, width, dtype=torch.float16, device=self.data.device)
            for name, width in widths.items()
        }
        return Table(parts, self.sizes.classes)

    def run(
        self, arch: str, variant: str, seed: int = 0, negatives: Negatives = "auto", **runtime: Any
    ) -> Run:
        """A run without end of `variant`, one of TERMS, at its start.

        `negatives` is CRD's option, `runtime` are changes of RUNTIME.
        """
        torch.manual_seed(seed)
        student = models.create(arch, self.sizes.classes)
        student.to(self.data.device).to(memory_format=torch.channels_last)
        teacher = self.teacher if variant == "kd" else self.fused
        terms = self._terms(variant, negatives)
        training = Training(
            arch=arch,
            epochs=ENDLESS,
            batch_size=self.sizes.batch_size,
            lr=0.05,
            schedule="step",
            milestones=(),
            momentum=0.9,
            weight_decay=5e-4,
        )
        no_images = torch.zeros(0, 3, SIDE, SIDE, device=self.data.device)
        return Run(
            student,
            make_objective(terms, student, teacher, self.labels).to(self.data.device),
            Sources(self.data, (no_images, self.data.labels[:0]), teacher),
            Plan(training, replace(RUNTIME, **runtime), seed),
            Checkpoint(next(self.names), "") if self.checkpoints else NoCheckpoint(),
            variant,
        )

    def _terms(self, variant: str, negatives: Negatives) -> dict[str, Term]:
        crd = Crd(
            weight=0.8,
            dim=self.sizes.dim,
            num_negatives=self.sizes.negatives,
            negatives=negatives,
            temperature=0.07,
            momentum=0.5,
        )
        terms: dict[str, Term] = {"ce": Ce(), "kd": KD, "crd": crd}
        return {name: terms[name] for name in ("ce", *TERMS[variant])}


def random_images(labels: Tensor) -> Split:
    """Images of random bytes, one for each of `labels`, int64 (N,)."""
    pixels = torch.randint(256, (len(labels), SIDE, SIDE, 3), dtype=torch.uint8)
    return Split(pixels.numpy(), labels.numpy())


def stepper(runs: Sequence[Run], steps: int) -> Case:
    """`steps` steps of each run, taken in turn as `richkd.train.fit.fit` takes them."""
    trainings = [(run, run.train()) for run in runs]

    def case() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # the bars
            for _ in range(steps):
                for run, training in trainings:
                    with torch.cuda.stream(run.stream):
                        next(training)

    return case
