"""Train the conventional teacher with cross entropy."""

from richkd import params
from richkd.objectives import Objective
from richkd.training import TrainingData, train_seeds
from stages import run


def main() -> None:
    p = params.load("teacher", "views", "runtime")
    data = TrainingData(p.views, p.runtime)
    train_seeds("teacher", data, p.teacher, [p.teacher.seed], lambda model: Objective(), p, [__file__])


if __name__ == "__main__":
    run(main)
