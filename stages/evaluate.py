"""Run a model on the validation, test, corrupted and shifted images; save its logits, once."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from richkd import classifiers, engine, params, weights
from richkd.base import distributed
from richkd.base.files import write_array
from richkd.data import imagesets
from richkd.data.dataset import CORRUPTED, SHIFTED, load_info, load_split
from richkd.data.imagesets import Centers, Pixels
from richkd.data.views import Center
from richkd.evaluate.scores import corrupted_sets, score, shifted_found
from stages import run


def main(name: str) -> None:
    p = params.load(
        "runtime.device", "runtime.precision", "runtime.deterministic",
        "evaluate.batch_size", "corruptions.names", "corruptions.severities",
    )  # fmt: skip
    names, severities = corrupted_sets(p.corruptions.names), p.corruptions.severities
    device = engine.start(p.runtime.device, p.runtime.deterministic)
    models = [classifiers.load_classifier(path, device) for path in weights.paths(f"models/{name}")]
    _, mean, std, center = models[0]  # the same for every seed

    def inputs(path: Path | str, center: Center | None = center) -> Pixels | Centers:
        return imagesets.for_inference(load_split(path), mean, std, center, device)

    def logits(images: Pixels | Centers) -> np.ndarray:
        """float32 (seeds, N, C)."""
        batch_size, precision = p.evaluate.batch_size, p.runtime.precision
        with engine.out_of_memory("evaluate.batch_size"):
            results = [
                engine.predict_logits(model, images, batch_size, precision) for model, *_ in models
            ]
        return torch.stack(results).cpu().numpy()

    clean = {split: logits(inputs(f"data/{split}.safetensors")) for split in ("validation", "test")}
    for key in shifted_found():
        clean[f"shifted/{key}"] = logits(inputs(SHIFTED / f"{key}.safetensors"))
    first = distributed.rank() == 0
    seeds, count, classes = clean["test"].shape
    shape = seeds, len(names), len(severities), count, classes
    corrupted = np.empty(shape if first else 0, np.float16)
    for number, corruption in enumerate(tqdm(names, name, unit="corruption")):
        if (path := CORRUPTED / f"{corruption}.npy").exists():
            images = Pixels(np.load(path, mmap_mode="r"), mean, std, device)
        else:  # files that were cut before they were corrupted
            images = inputs(path.with_suffix(".safetensors"), center._replace(resize=center.size))
        scores = logits(images)
        if first:
            # 16 bits are finest near 0: there the largest logit goes, and probabilities stay the same.
            scores -= scores.max(-1, keepdims=True)
            corrupted[:, number] = scores.reshape(seeds, len(severities), count, classes)
    if not first:
        return
    for part, array in {**clean, "corrupted": corrupted}.items():
        write_array(f"predictions/{name}/{part}.npy", array)
    labels = load_split("data/test.safetensors").labels
    score(name, labels, names, severities, load_info("data/info.json").whole_imagenet)
    print(f"predictions/{name}, metrics/evaluate/{name}.json, metrics/evaluate/{name}.csv")


if __name__ == "__main__":
    run(main, "teacher", "clip", "ce", "kd", "L", "F", "LF", parallel=True)
