"""Train students under a teacher: one of `distill.variants`."""

from pathlib import Path
from typing import Any, cast

from torch import nn

from richkd import params
from richkd.evaluate.seeds import write_training
from richkd.teachers.fused import Fused
from richkd.teachers.lookup import open_control, open_teacher
from richkd.teachers.teacher import Teacher
from richkd.train.objective import Objective
from richkd.train.seeds import Job, TrainingData, train_seeds
from richkd.train.terms import make_objective, parts_needed
from stages import run, variant_names


def main(name: str) -> None:
    settings = params.load(
        f"distill.variants.{name}", "distill.seeds", "student", "views", "runtime"
    )
    variant = getattr(settings.distill.variants, name)
    parts = parts_needed(variant.terms)
    data = TrainingData(settings.views, settings.runtime)
    teacher = open_teacher(variant.teacher, data.train.views, data.device, parts)
    if variant.control:
        teacher = open_control(cast(Fused, teacher), variant.control, data.train.labels)

    def objective(student: nn.Module, teacher: Teacher) -> Objective:
        return make_objective(variant.terms, student, teacher, data.train.labels)

    recorded: dict[str, Any] = params.to_dict(settings)
    if isinstance(teacher, Fused):
        recorded["fusion"] = teacher.recipe.to_dict()
    inputs: list[Path | str] = [__file__, *Path("cache", variant.teacher).glob("*.json")]
    job = Job(name, settings.student, settings.distill.seeds, recorded, inputs)
    train_seeds(job, data, write_training, teacher, objective)


if __name__ == "__main__":
    run(main, variant_names, parallel=True)
