"""How far a model's probabilities can be trusted, from its saved logits alone."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.data.dataset import load_split
from richkd.evaluate import calibration
from richkd.evaluate.seeds import summarize
from richkd.params import Calibration
from stages import run

MOST = (
    200_000_000  # logits of corrupted images that are looked at; more take every 2nd image, 3rd, …
)


def main(name: str) -> None:
    p = params.load("calibration").calibration
    validation, test = (load_split(f"data/{x}.safetensors").labels for x in ("validation", "test"))
    predictions = {
        split: np.load(f"predictions/{name}/{split}.npy", mmap_mode="r")
        for split in ("validation", "test", "corrupted")
    }
    results, curves = {}, []
    # Every so many images, where the probabilities of all corrupted ones would not fit into memory.
    step = max(1, -(-predictions["corrupted"][0].size // MOST))
    for seed, fitting in enumerate(predictions["validation"]):
        # Without validation images there is nothing to fit a temperature to.
        temperature = calibration.fit_temperature(fitting, validation) if len(validation) else None
        sets = {"clean": (predictions["test"][seed], test)}
        # All corruptions and severities together are one large test set.
        corrupted = predictions["corrupted"][seed, :, :, ::step]
        if corrupted.size:
            labels = np.broadcast_to(test[::step], corrupted.shape[:-1]).reshape(-1)
            sets["corrupted"] = corrupted.reshape(len(labels), -1), labels
        for data, (logits, truth) in sets.items():
            logits = logits.astype(float)
            probabilities = softmax(logits, axis=1)
            result = measure(probabilities, truth, p)
            if temperature:
                tempered = softmax(logits / temperature, axis=1)
                result |= {
                    "temperature": temperature,
                    "ece_tempered": calibration.expected_calibration_error(tempered, truth, p.bins),
                    "nll_tempered": calibration.negative_log_likelihood(tempered, truth),
                }
            results.setdefault(data, {})[f"run{seed}"] = result
            curve = calibration.reliability_curve(probabilities, truth, p.bins)
            curves.append(pd.DataFrame(curve).assign(run=seed, data=data))
    write_json(f"metrics/calibrate/{name}.json", {x: summarize(r) for x, r in results.items()})
    with replacing(f"metrics/calibrate/{name}.csv") as part:
        pd.concat(curves).to_csv(part, index=False)
    print(f"metrics/calibrate/{name}.json, metrics/calibrate/{name}.csv")


def measure(probabilities: np.ndarray, labels: np.ndarray, p: Calibration) -> dict[str, float]:
    return {
        "ece": calibration.expected_calibration_error(probabilities, labels, p.bins),
        "mce": calibration.maximum_calibration_error(probabilities, labels, p.bins),
        "adaptive_ece": calibration.adaptive_calibration_error(probabilities, labels, p.bins),
        "classwise_ece": calibration.classwise_calibration_error(probabilities, labels, p.bins),
        "brier": calibration.brier_score(probabilities, labels),
        "nll": calibration.negative_log_likelihood(probabilities, labels),
        **calibration.confidence_quadrants(probabilities, labels, p.threshold),
    }


if __name__ == "__main__":
    run(main, "teacher", "clip", "fused", "ce", "kd", "L", "F", "LF")
