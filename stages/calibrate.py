"""How far a model's probabilities can be trusted, from its saved logits alone."""

import numpy as np
import pandas as pd

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.data.dataset import load_split
from richkd.evaluate import calibration
from richkd.evaluate.scores import read_logits
from richkd.evaluate.seeds import summarize
from stages import run, variant_names

# Probabilities of more logits of corrupted images would not fit into memory: with more, every 2nd
# image is measured, or every 3rd, and so on.
MAX_CORRUPTED_LOGITS = 200_000_000
NO_TEMPERATURE = (
    "no tempered figures, since there is no best temperature: on the validation images all answers "
    "are right, or the labels have no larger logits than other classes"
)


def main(name: str) -> None:
    settings = params.load("calibration").calibration
    validation_labels, test_labels = (
        load_split(f"data/{split}.safetensors").labels for split in ("validation", "test")
    )
    test = read_logits(name, "test", (None, len(test_labels), None), test_labels, "r")
    seeds, images, classes = test.shape
    of_validation = seeds, len(validation_labels), classes
    validation = read_logits(name, "validation", of_validation, validation_labels, "r")
    of_corrupted = seeds, None, None, images, classes
    corrupted = read_logits(name, "corrupted", of_corrupted, test_labels, "r")
    step = max(1, -(-corrupted[0].size // MAX_CORRUPTED_LOGITS))
    results: dict[str, dict[str, dict[str, float]]] = {}
    curves = []
    for run_number in range(len(test)):
        temperature = None
        if len(validation_labels):
            temperature = calibration.fit_temperature(validation[run_number], validation_labels)
            if temperature is None:
                print(f"{name} run{run_number}: {NO_TEMPERATURE}")
        sets = {"clean": (test[run_number], test_labels)}
        # All corruptions and severities together are one large test set.
        logits = corrupted[run_number, :, :, ::step]
        if logits.size:
            labels = np.broadcast_to(test_labels[::step], logits.shape[:-1]).reshape(-1)
            sets["corrupted"] = logits.reshape(len(labels), -1), labels
        for data, (logits, labels) in sets.items():
            figures, curve = calibration.measure(logits, labels, settings, temperature)
            results.setdefault(data, {})[f"run{run_number}"] = figures
            curves.append(pd.DataFrame(curve).assign(run=run_number, data=data))
    write_json(f"metrics/calibrate/{name}.json", {x: summarize(r) for x, r in results.items()})
    with replacing(f"metrics/calibrate/{name}.csv") as part:
        pd.concat(curves).to_csv(part, index=False)
    print(f"metrics/calibrate/{name}.json, metrics/calibrate/{name}.csv")


if __name__ == "__main__":
    run(main, lambda: ["teacher", "clip", "fused", "ce", *variant_names()])
