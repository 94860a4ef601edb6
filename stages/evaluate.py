"""Run a model on the validation, test and corrupted test images; save its logits, once."""

import numpy as np
import torch
from tqdm import tqdm

from richkd import engine, params, weights
from richkd.dataset import load_split
from richkd.evaluation import score
from richkd.files import write_array
from stages import run


def main(name: str) -> None:
    p = params.load(
        "runtime", "evaluate.batch_size", "corruptions.names", "corruptions.severities"
    )
    corruptions, severities = p.corruptions.names, p.corruptions.severities
    device = engine.pick_device(p.runtime.device)
    models = [weights.load_classifier(path, device) for path in weights.paths(f"models/{name}")]
    _, mean, std = models[0]  # the same for every seed

    def logits(images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, 3) to float32 (seeds, N, C)."""
        inputs = engine.to_input(images, mean, std, device)
        batch_size, precision = p.evaluate.batch_size, p.runtime.precision
        results = [engine.predict(model, inputs, batch_size, precision)[0] for model, *_ in models]
        return torch.stack(results).cpu().numpy()

    for split in ("validation", "test"):
        images = load_split(f"data/{split}.safetensors").images
        write_array(f"predictions/{name}/{split}.npy", logits(images))
    corrupted = []
    for corruption in tqdm(corruptions, name, unit="corruption"):
        scores = logits(np.load(f"data/corrupted/{corruption}.npy"))
        # 16 bits are finest near 0: there the largest logit goes, and probabilities stay the same.
        scores = (scores - scores.max(-1, keepdims=True)).astype(np.float16)
        corrupted.append(scores.reshape(len(models), len(severities), -1, scores.shape[-1]))
    write_array(f"predictions/{name}/corrupted.npy", np.stack(corrupted, axis=1))
    score(name, load_split("data/test.safetensors").labels, corruptions, severities)
    print(f"predictions/{name}, metrics/evaluate/{name}.json, metrics/evaluate/{name}.csv")


if __name__ == "__main__":
    run(main, "teacher", "clip", "ce", "kd", "L", "F", "LF")
