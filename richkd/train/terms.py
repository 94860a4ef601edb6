"""The terms by which a student learns from teachers, tables or not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd import losses
from richkd.models import ModelOutput
from richkd.teachers.fusion import fuse_features, fuse_logits
from richkd.teachers.lookup import Table

TeacherLogits = Callable[[Tensor, Tensor], Tensor]  # (ids, view_ids) to (B, classes)


class LogitDistillation(nn.Module):
    """Hinton's KD between the student's logits and those looked up for the same views.

    From a table of the largest logits alone (`cache.top_k`) the teacher is one that spreads what it
    leaves to the other classes evenly over them.
    """

    def __init__(self, teacher_logits: TeacherLogits, temperature: float):
        super().__init__()
        self.teacher_logits, self.temperature = teacher_logits, temperature

    def forward(
        self, output: ModelOutput, ids: Tensor, view_ids: Tensor, draw: torch.Generator
    ) -> Tensor:
        return losses.kd(output.logits, self.teacher_logits(ids, view_ids), self.temperature)


def fused_logits(teacher: Table, clip: Table, alpha: float) -> TeacherLogits:
    """The fused teacher as a function of images and views: both tables looked up, then fused."""
    return lambda ids, view_ids: fuse_logits(
        teacher.logits(ids, view_ids), clip.logits(ids, view_ids), alpha
    )


class FusedContrast(nn.Module):
    """CRD between the student's features and the fused features of both teachers.

    Linear heads followed by L2 norm, learned with the student, bring the three to one dimension.
    """

    def __init__(
        self,
        student_dim: int,
        teacher: Table,
        clip: Table,
        lam: float,
        memory: losses.ContrastiveMemory,
    ):
        super().__init__()
        dim = memory.student_bank.shape[1]
        self.student_head = nn.Linear(student_dim, dim)
        self.teacher_head = nn.Linear(teacher.feature_dim, dim)
        self.clip_head = nn.Linear(clip.feature_dim, dim)
        self.teacher, self.clip, self.lam, self.memory = teacher, clip, lam, memory

    def forward(
        self, output: ModelOutput, ids: Tensor, view_ids: Tensor, draw: torch.Generator
    ) -> Tensor:
        student = F.normalize(self.student_head(output.features), dim=1)
        teacher = F.normalize(self.teacher_head(self.teacher.features(ids, view_ids)), dim=1)
        clip = F.normalize(self.clip_head(self.clip.features(ids, view_ids)), dim=1)
        fused = fuse_features(teacher, clip, self.lam)
        return self.memory(student, fused, ids, self.memory.draw(ids, draw))
