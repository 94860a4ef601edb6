"""Train students on labels alone: `ce`, the baseline of all variants."""

from richkd import params
from richkd.evaluate.seeds import write_training
from richkd.train.seeds import Job, TrainingData, train_seeds
from stages import run


def main() -> None:
    settings = params.load("student", "distill.seeds", "views", "runtime")
    data = TrainingData(settings.views, settings.runtime)
    job = Job("ce", settings.student, settings.distill.seeds, settings, [__file__])
    train_seeds(job, data, write_training)


if __name__ == "__main__":
    run(main, parallel=True)
