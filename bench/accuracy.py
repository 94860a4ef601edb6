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
from richkd.evaluate.seeds import paired

SEEDS = (0, 1, 2, 3, 4)
# A parameter and its other value; `{}` is the variant that is trained.
TRICKS = {
    "bf16": ("runtime.precision", "bf16"),
    "shared negatives": ("distill.variants.{}.crd.negatives", "shared"),
}


def main(*, variants: Sequence[str] = ("F", "LF"), seeds: Sequence[int] = SEEDS) -> None:
    rows: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone(folder)
        for variant in variants:
            plain = train(folder, variant, seeds)
            rows[variant] = describe(plain)
            for trick, (key, value) in TRICKS.items():
                changed = train(folder, variant, seeds, {key.format(variant): value})
                mean, error, _ = paired(changed, plain)
                assert error is not None  # there are several seeds
                against = {"difference": mean, "standard_error": error}
                rows[f"{variant}, {trick}"] = {**describe(changed), **against}
    report("accuracy", rows, data_set="digits", seeds=len(seeds), figures="validation accuracy, %")


def train(
    folder: Path, variant: str, seeds: Sequence[int], changes: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The validation accuracy of one student a seed, in percent: `{"seed0": accuracy}`.

    `changes` are parameters by their full names, with the values that they have for this training.
    """
    path, yaml = folder / "params.yaml", YAML()
    before = path.read_text()
    params = yaml.load(before)
    params["distill"]["seeds"] = list(seeds)
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[name] = value
    yaml.dump(params, path)
    command(folder, sys.executable, "-m", "stages.distill", variant)
    path.write_text(before)
    metrics = json.loads((folder / f"metrics/train/{variant}.json").read_text())
    return {f"seed{x}": 100 * metrics["validation_accuracy"][f"seed{x}"] for x in seeds}


def describe(values: Mapping[str, float]) -> dict[str, float]:
    return {"mean": statistics.mean(values.values()), "sd": statistics.stdev(values.values())}


if __name__ == "__main__":
    main()
