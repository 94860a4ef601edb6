"""Look at the fused teacher on the validation images, before anything is trained under it.

The paper's own argument, measured: over alpha, the accuracy, likelihood and calibration of the
fused teacher; how often each teacher is confident and wrong; how close in meaning to the true
class its remaining probability lies. Without validation images there is nothing to look at, and
all files come out empty.
"""

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy.special import softmax

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.data.dataset import load_split
from richkd.evaluate import calibration
from richkd.teachers.fusion import fuse_logits, semantic_closeness
from stages import run


def main() -> None:
    p = params.load("fusion", "calibration")
    bins = p.calibration.bins
    labels = load_split("data/validation.safetensors").labels
    teacher, clip = (np.load(f"cache/{name}/validation.npy") for name in ("teacher", "clip"))
    classes = load_file("models/clip/seed0.safetensors")["classifier"]

    def scores(alpha: float) -> dict[str, float]:
        logits = fuse_logits(teacher, clip, alpha)
        probabilities = softmax(logits.astype(float), axis=1)
        return {
            "accuracy": float(np.mean(logits.argmax(1) == labels)),
            "nll": calibration.negative_log_likelihood(probabilities, labels),
            "ece": calibration.expected_calibration_error(probabilities, labels, bins),
        }

    grid, mixtures = (), ()
    if len(labels):
        grid = p.fusion.grid
        mixtures = (("teacher", 1.0), ("clip", 0.0), ("fused", p.fusion.alpha))
    curve = [{"alpha": alpha, **scores(alpha)} for alpha in grid]
    summary, shares, closeness = {}, [], []
    for name, alpha in mixtures:
        probabilities = softmax(fuse_logits(teacher, clip, alpha).astype(float), axis=1)
        quadrants = calibration.confidence_quadrants(probabilities, labels, p.calibration.threshold)
        close = float(semantic_closeness(probabilities, labels, classes).mean())
        summary[name] = {**scores(alpha), **quadrants, "semantic_closeness": close}
        shares += [{"model": name, "answer": key, "share": x} for key, x in quadrants.items()]
        closeness.append({"model": name, "semantic_closeness": close})
    if curve:
        best = max(curve, key=lambda row: row["accuracy"])
        summary["best_alpha"] = {"alpha": best["alpha"], "accuracy": best["accuracy"]}

    tables = {
        "alpha": (curve, ["alpha", "accuracy", "nll", "ece"]),
        "answers": (shares, ["model", "answer", "share"]),
        "closeness": (closeness, ["model", "semantic_closeness"]),
    }
    for name, (rows, columns) in tables.items():
        with replacing(f"metrics/fusion/{name}.csv") as part:
            pd.DataFrame(rows, columns=columns).to_csv(part, index=False)
    write_json("metrics/fusion.json", summary)
    print("metrics/fusion.json, metrics/fusion/{alpha,answers,closeness}.csv")


if __name__ == "__main__":
    run(main)
