"""What the tricks that change the maths do to accuracy: students of `digits` with and without them.

Runs `stages.distill` on the outputs of `dvc repro`, in a temporary clone, five seeds a setting, and
compares the validation accuracies seed by seed. A difference within one standard error is noise.
Run it: `python -m bench.accuracy`.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
                rows[f"{variant}, {trick}"] = {**describe(changed), **compare(changed, plain)}
    report("accuracy", rows, data_set="digits", seeds=len(seeds), figures="validation accuracy, %")


def train(
    folder: Path, variant: str, seeds: Sequence[int], changes: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The validation accuracy of one student a seed, in percent: `{"seed0": accuracy}`.

    `changes` are parameters by their full names, with the values that they have for this training.
    """
    with changed_params(folder, {"distill.seeds": list(seeds), **(changes or {})}):
        command(folder, sys.executable, "-m", "stages.distill", variant)
    metrics = json.loads((folder / f"metrics/train/{variant}.json").read_text())
    return {f"seed{x}": 100 * metrics["validation_accuracy"][f"seed{x}"] for x in seeds}


@contextmanager
def changed_params(folder: Path, changes: Mapping[str, Any]) -> Iterator[None]:
    """In the block, the folder's params.yaml has the values of `changes`, by full names."""
    path, yaml = folder / "params.yaml", YAML()
    before = path.read_text()
    params = yaml.load(before)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[name] = value
    yaml.dump(params, path)
    try:
        yield
    finally:
        path.write_text(before)


def describe(values: Mapping[str, float]) -> dict[str, float]:
    return {"mean": statistics.mean(values.values()), "sd": statistics.stdev(values.values())}


def compare(changed: Mapping[str, float], plain: Mapping[str, float]) -> dict[str, float]:
    """The mean difference, seed by seed, and its standard error."""
    mean, error, _ = paired(changed, plain)
    assert error is not None  # there are several seeds
    return {"difference": mean, "standard_error": error}


if __name__ == "__main__":
    main()
