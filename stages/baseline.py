"""Train students that know nothing of CLIP: `ce` on labels alone, `kd` under the teacher."""

from richkd import cache, params
from richkd.distillation import LogitDistillation
from richkd.objectives import Objective
from richkd.training import TrainingData, train_seeds
from stages import run


def main(variant: str) -> None:
    p = params.load(
        "student", "baseline", "distill.seeds", "views", "runtime", "cache.teacher"
    )
    data = TrainingData(p.views, p.runtime)
    objective, inputs = Objective(), [__file__]
    if variant == "kd":
        teacher = cache.of("teacher", data.views, p.cache.teacher)
        term = LogitDistillation(teacher.logits, p.baseline.temperature)
        objective = Objective(p.baseline.ce_weight, kd=(p.baseline.logit_weight, term))
        inputs.append("cache/teacher/cache.json")
    train_seeds(variant, data, p.student, p.distill.seeds, lambda student: objective, p, inputs)


if __name__ == "__main__":
    run(main, "ce", "kd")
