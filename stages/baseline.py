"""Train students that know nothing of CLIP: `ce` on labels alone, `kd` under the teacher."""

from torch import nn

from richkd import params
from richkd.teachers import lookup as cache
from richkd.teachers.lookup import Table
from richkd.train.objective import Objective
from richkd.train.seeds import TrainingData, train_seeds
from richkd.train.terms import LogitDistillation
from stages import run


def main(variant: str) -> None:
    p = params.load(
        "student", "baseline", "distill.seeds", "views", "runtime", "cache.teacher", "cache.top_k"
    )
    data = TrainingData(p.views, p.runtime)
    tables, inputs = [], [__file__]
    if variant == "kd":
        tables.append(
            cache.of(
                "teacher", data.train.views, p.cache.teacher, p.cache.top_k, data.device, ["logits"]
            )
        )
        inputs.append("cache/teacher/cache.json")

    def objective(student: nn.Module, *teacher: Table) -> Objective:
        if not teacher:
            return Objective()
        term = LogitDistillation(teacher[0].logits, p.baseline.temperature)
        return Objective(p.baseline.ce_weight, kd=(p.baseline.logit_weight, term))

    train_seeds(variant, data, p.student, p.distill.seeds, objective, p, inputs, tables)


if __name__ == "__main__":
    run(main, "ce", "kd", parallel=True)
