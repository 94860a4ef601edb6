"""Is it CLIP, or would any second opinion do? Students of `digits` under two conventional teachers.

The second teacher is the first teacher, trained with another seed. It takes CLIP's place in the
fused teacher, with a table of all views like that of the first teacher; alpha is 0.5, since both
teachers are alike. Runs stages on the outputs of `dvc repro`, in a temporary clone, and compares
validation accuracies seed by seed. Run it: `python -m bench.ensemble`.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.accuracy import SEEDS, changed_params, compare, describe, train
from bench.common import report
from bench.overhead import clone, command
from richkd.base.files import sha256, write_json
from richkd.teachers.fusion import FUSED, Recipe

ALPHA = 0.5


def main(*, seeds: Sequence[int] = SEEDS, second: int = 1) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone(folder)
        kd, with_clip = (train(folder, variant, seeds) for variant in ("kd", "L"))
        replace_clip(folder, second)
        ensemble = train(folder, "L", seeds)
    rows: dict[str, Mapping[str, float]] = {"kd": describe(kd)}
    for label, values in {"L": with_clip, "L, two teachers": ensemble}.items():
        rows[label] = {**describe(values), **compare(values, kd)}
    report("ensemble", rows, data_set="digits", seeds=len(seeds), figures="validation accuracy, %")


def replace_clip(folder: Path, seed: int) -> None:
    """Put a teacher trained with another seed where CLIP and its table are, and fuse both."""
    places = [folder / name for name in ("models", "cache")]
    for place in places:
        shutil.rmtree(place / "clip")
        shutil.copytree(place / "teacher", place / "first")
    with changed_params(folder, {"teacher.seed": seed}):
        command(folder, sys.executable, "-m", "stages.teacher")
        command(folder, sys.executable, "-m", "stages.cache", "teacher")
    for place in places:
        (place / "teacher").rename(place / "clip")
        (place / "first").rename(place / "teacher")
    tables = {name: sha256(folder / f"cache/{name}/cache.json") for name in ("teacher", "clip")}
    recipe = Recipe(ALPHA, ALPHA, {"teacher": 1.0, "clip": 1.0}, tables)
    write_json(folder / FUSED, recipe.to_dict())


if __name__ == "__main__":
    main()
