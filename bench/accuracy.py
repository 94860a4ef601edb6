"""What the tricks that change the maths do to accuracy: students of `digits` with and without them.

Runs `stages.distill` on the outputs of `dvc repro`, in a temporary clone, five seeds a setting, and
compares the validation accuracies seed by seed. A difference within one standard error is noise.
Run it: `python -m bench.accuracy`.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from bench.common import report
from bench.overhead import clone, command

SEEDS = (0, 1, 2, 3, 4)
TRICKS = {
    "bf16": ("runtime", "precision", "bf16"),
    "shared negatives": ("crd", "negatives", "shared"),
}


def main(*, variants: Sequence[str] = ("F", "LF"), seeds: Sequence[int] = SEEDS) -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        clone(Path(folder))
        for variant in variants:
            plain = train(folder, variant, seeds)
            rows[variant] = describe(plain)
            for name, trick in TRICKS.items():
                changed = train(folder, variant, seeds, trick)
                rows[f"{variant}, {name}"] = describe(changed) | compare(changed, plain)
    report("accuracy", rows, data_set="digits", seeds=len(seeds), figures="validation accuracy, %")


def train(
    folder: str, variant: str, seeds: Sequence[int], trick: tuple[str, str, object] | None = None
) -> list[float]:
    """Validation accuracy of a student a seed, in percent."""
    path, yaml = Path(folder) / "params.yaml", YAML()
    before = path.read_text()
    params = yaml.load(before)
    params["distill"]["seeds"] = list(seeds)
    if trick:
        section, key, value = trick
        params[section][key] = value
    yaml.dump(params, path)
    command(folder, sys.executable, "-m", "stages.distill", variant)
    path.write_text(before)
    metrics = json.loads((Path(folder) / f"metrics/train/{variant}.json").read_text())
    return [100 * metrics["validation_accuracy"][f"seed{seed}"] for seed in seeds]


def describe(values: Sequence[float]) -> Mapping[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def compare(changed: Sequence[float], plain: Sequence[float]) -> Mapping[str, float]:
    """The mean difference, seed by seed, and its standard error."""
    differences = [a - b for a, b in zip(changed, plain)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return {"difference": statistics.mean(differences), "standard_error": error}


if __name__ == "__main__":
    main()
