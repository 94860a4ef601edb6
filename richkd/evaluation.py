"""What saved logits say about a model's accuracy; numpy and pandas only.

`predictions/<name>/` holds float32 `validation.npy` and `test.npy` (seeds, N, C), and float16
`corrupted.npy` (seeds, corruptions, severities, N, C), less each row's largest.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from richkd.files import replacing, write_json
from richkd.metrics import summarize


def hit_rate(logits: np.ndarray, labels: np.ndarray, top: int) -> float:
    """Share of rows of `logits` (N, C) whose label (N,) is among the `top` largest."""
    best = np.argpartition(-logits, top - 1, axis=1)[:, :top]
    return float((best == labels[:, None]).any(1).mean())


def score(
    name: str, labels: np.ndarray, corruptions: Sequence[str], severities: Sequence[int]
) -> None:
    """Write `metrics/evaluate/<name>.json` and `.csv`, accuracy by corruption and severity."""
    folder = Path("predictions") / name
    clean = np.load(folder / "test.npy")
    corrupted = np.load(folder / "corrupted.npy", mmap_mode="r")
    results, rows = {}, []
    for seed in range(len(clean)):
        shares = (corrupted[seed].argmax(-1) == labels).mean(-1)  # (corruptions, severities)
        results[f"run{seed}"] = {
            "top1": hit_rate(clean[seed], labels, 1),
            "top5": hit_rate(clean[seed], labels, min(5, clean.shape[-1])),
            "corrupted_top1": float(shares.mean()),
        }
        rows += [
            {"run": seed, "corruption": corruption, "severity": severity, "accuracy": shares[i, j]}
            for i, corruption in enumerate(corruptions)
            for j, severity in enumerate(severities)
        ]
    table = pd.DataFrame(rows).groupby(["corruption", "severity"], sort=False).accuracy
    with replacing(f"metrics/evaluate/{name}.csv") as part:
        table.agg(accuracy="mean").to_csv(part)
    write_json(f"metrics/evaluate/{name}.json", summarize(results))
