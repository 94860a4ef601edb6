"""Run a model on the validation, test and corrupted test images; save its logits, once."""

import numpy as np
import torch
from tqdm import tqdm

from richkd import distributed, engine, params, weights
from richkd.dataset import load_split
from richkd.evaluation import score
from richkd.files import write_array
from stages import run


def main(name: str) -> None:
    p = params.load(
        "runtime.device", "runtime.precision", "runtime.deterministic",
        "evaluate.batch_size", "corruptions.names", "corruptions.severities",
    )  # fmt: skip
    corruptions, severities = p.corruptions.names, p.corruptions.severities
    device = engine.start(p.runtime.device, p.runtime.deterministic)
    models = [weights.load_classifier(path, device) for path in weights.paths(f"models/{name}")]
    _, mean, std = models[0]  # the same for every seed

    def logits(images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, 3) to float32 (seeds, N, C)."""
        inputs = engine.to_input(images, mean, std, device)
        batch_size, precision = p.evaluate.batch_size, p.runtime.precision
        with engine.out_of_memory("evaluate.batch_size"):
            results = [
                engine.predict_logits(model, inputs, batch_size, precision) for model, *_ in models
            ]
        return torch.stack(results).cpu().numpy()

    predictions = {
        split: logits(load_split(f"data/{split}.safetensors").images)
        for split in ("validation", "test")
    }
    corrupted = []
    for corruption in tqdm(corruptions, name, unit="corruption"):
        scores = logits(np.load(f"data/corrupted/{corruption}.npy"))
        # 16 bits are finest near 0: there the largest logit goes, and probabilities stay the same.
        scores = (scores - scores.max(-1, keepdims=True)).astype(np.float16)
        corrupted.append(scores.reshape(len(models), len(severities), -1, scores.shape[-1]))
    predictions["corrupted"] = np.stack(corrupted, axis=1)
    if distributed.rank() > 0:
        return
    for split, array in predictions.items():
        write_array(f"predictions/{name}/{split}.npy", array)
    score(name, load_split("data/test.safetensors").labels, corruptions, severities)
    print(f"predictions/{name}, metrics/evaluate/{name}.json, metrics/evaluate/{name}.csv")


if __name__ == "__main__":
    run(main, "teacher", "clip", "ce", "kd", "L", "F", "LF", parallel=True)
