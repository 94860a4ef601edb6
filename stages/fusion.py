"""Write the recipe of the fused teacher, and look at it on the validation images before training.

The paper's own argument, measured: over alpha, the accuracy, likelihood and calibration of the
fused teacher; how often each teacher is confident and wrong; how close in meaning to the true
class its remaining probability lies. Without validation images there is nothing to look at, and
all metrics come out empty.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.base.records import check_array, read_array, read_safetensors
from richkd.data.dataset import load_split
from richkd.evaluate import calibration
from richkd.teachers.fusion import Recipe, semantic_closeness, table_fingerprints
from stages import run

COLUMNS = {
    "alpha": ["alpha", "accuracy", "nll", "ece"],
    "answers": ["model", "answer", "share"],
    "closeness": ["model", "semantic_closeness"],
}


def main() -> None:
    settings = params.load("fusion", "calibration")
    as_they_are = {"teacher": 1.0, "clip": 1.0}
    recipe = Recipe(settings.fusion.alpha, settings.fusion.lam, as_they_are, table_fingerprints())
    recipe.save()
    labels = load_split("data/validation.safetensors").labels
    summary: dict[str, Any] = {}
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    if len(labels):
        summary, tables = diagnose(recipe, labels, settings.fusion.grid, settings.calibration)
    for name, columns in COLUMNS.items():
        with replacing(f"metrics/fusion/{name}.csv") as part:
            pd.DataFrame(tables[name], columns=columns).to_csv(part, index=False)
    write_json("metrics/fusion.json", summary)
    print("cache/fused, metrics/fusion.json, metrics/fusion/{alpha,answers,closeness}.csv")


def diagnose(
    recipe: Recipe, labels: np.ndarray, grid: tuple[float, ...], settings: params.Calibration
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The figures of both teachers and their mixtures, and the rows of the three tables."""
    path = "models/clip/seed0.safetensors"
    classes = read_safetensors(path).get("classifier", np.empty(0))
    check_array(f"{path}: classifier", classes, "float32", (None, None))
    shape = len(labels), len(classes)
    logits = [
        read_array(f"cache/{name}/validation.npy", "float32", shape) for name in ("teacher", "clip")
    ]

    def probabilities(alpha: float) -> np.ndarray:
        return softmax(recipe._replace(alpha=alpha).mix(*logits).astype(float), axis=1)

    def scores(alpha: float) -> dict[str, float]:
        mixed = probabilities(alpha)
        return {
            "accuracy": float(np.mean(mixed.argmax(1) == labels)),
            "nll": calibration.negative_log_likelihood(mixed, labels),
            "ece": calibration.expected_calibration_error(mixed, labels, settings.bins),
        }

    curve = [{"alpha": alpha, **scores(alpha)} for alpha in grid]
    summary, answers, closeness = {}, [], []
    for name, alpha in (("teacher", 1.0), ("clip", 0.0), ("fused", recipe.alpha)):
        mixed = probabilities(alpha)
        quadrants = calibration.confidence_quadrants(mixed, labels, settings.threshold)
        close = float(semantic_closeness(mixed, labels, classes).mean())
        summary[name] = {**scores(alpha), **quadrants, "semantic_closeness": close}
        answers += [{"model": name, "answer": key, "share": x} for key, x in quadrants.items()]
        closeness.append({"model": name, "semantic_closeness": close})
    best = max(curve, key=lambda row: row["accuracy"])
    summary["best_alpha"] = {"alpha": best["alpha"], "accuracy": best["accuracy"]}
    return summary, {"alpha": curve, "answers": answers, "closeness": closeness}


if __name__ == "__main__":
    run(main)
