"""How far a model's probabilities can be trusted, from its saved logits alone."""

import numpy as np
import pandas as pd

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.data.dataset import load_split
from richkd.evaluate import calibration
from richkd.evaluate.scores import read_logits, read_seeds
from richkd.evaluate.seeds import summarize
from stages import run, variant_names

# More logits of corrupted images would take minutes for each model. With more, only every 2nd image
# is measured, or every 3rd, and so on.
MAX_CORRUPTED_LOGITS = 200_000_000
NO_TEMPERATURE = (
    "no tempered figures, since there is no best temperature: on the validation images all answers "
    "are right, or the labels have no larger logits than other classes"
)


def main(name: str) -> None:
    settings = params.load("calibration").calibration
    validation_labels, labels = (
        load_split(f"data/{split}.safetensors").labels for split in ("validation", "test")
    )
    seeds = read_seeds(name)
    test = read_logits(name, "test", (len(seeds), len(labels), None), labels, "r")
    of_validation = len(seeds), len(validation_labels), test.shape[-1]
    validation = read_logits(name, "validation", of_validation, validation_labels, "r")
    of_corrupted = len(seeds), None, None, *test.shape[1:]
    corrupted = read_logits(name, "corrupted", of_corrupted, labels, "r")
    step = max(1, -(-corrupted[0].size // MAX_CORRUPTED_LOGITS))
    results: dict[str, dict[str, dict[str, float]]] = {}
    curves = []
    for number, seed in enumerate(seeds):
        temperature = None
        if len(validation_labels):
            temperature = calibration.fit_temperature(validation[number], validation_labels)
            if temperature is None:
                print(f"{name} {seed}: {NO_TEMPERATURE}")
        figures, curve = calibration.measure(test[number], labels, settings, temperature)
        if temperature is not None:
            figures["temperature"] = temperature
        results.setdefault("clean", {})[seed] = figures
        curves.append(pd.DataFrame(curve).assign(run=number, data="clean"))
        if corrupted[number].size:
            logits = corrupted[number, :, :, ::step]
            figures, curve = measure_sets(logits, labels[::step], settings, temperature)
            results.setdefault("corrupted", {})[seed] = figures
            curves.append(pd.DataFrame(curve).assign(run=number, data="corrupted"))
    write_json(f"metrics/calibrate/{name}.json", {x: summarize(r) for x, r in results.items()})
    with replacing(f"metrics/calibrate/{name}.csv") as part:
        pd.concat(curves).to_csv(part, index=False)
    print(f"metrics/calibrate/{name}.json, metrics/calibrate/{name}.csv")


def measure_sets(
    logits: np.ndarray, labels: np.ndarray, settings: params.Calibration, temperature: float | None
) -> tuple[dict[str, float], calibration.Curve]:
    """The mean of each figure over the corrupted sets, and the reliability curve of all images.

    Logits (corruptions, severities, N, C), labels (N,). Means over the sets, as for accuracy: in
    one large set of all images, a model that is too sure under one corruption and not sure enough
    under another would seem calibrated.
    """
    measured = [
        calibration.measure(of_set, labels, settings, temperature)
        for severities in logits
        for of_set in severities
    ]
    means = pd.DataFrame([figures for figures, _ in measured]).mean()
    return {str(name): float(mean) for name, mean in means.items()}, calibration.pool_curves(
        [curve for _, curve in measured]
    )


if __name__ == "__main__":
    run(main, lambda: ["teacher", "clip", "fused", "ce", *variant_names()])
