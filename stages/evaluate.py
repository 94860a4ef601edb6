"""Run a model on the validation, test, corrupted and shifted images; save its logits, once."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from richkd import engine, params
from richkd.base import distributed
from richkd.base.files import write_array, write_json
from richkd.classifiers import load_classifier
from richkd.data import imagesets
from richkd.data.dataset import (
    CORRUPTED,
    SHIFTED,
    Manifest,
    Split,
    load_info,
    load_split,
    read_corrupted,
)
from richkd.data.imagesets import Centers, Pixels
from richkd.data.views import Preprocessing
from richkd.evaluate.scores import corrupted_sets, limit, score, shifted_found
from richkd.model_records import paths
from stages import run, variant_names


class Model:
    """A model of every seed, and how it is run; `clipped` counts logits out of range."""

    def __init__(self, name: str, device: torch.device, batch_size: int, precision: str):
        loaded = [load_classifier(path, device) for path in paths(f"models/{name}")]
        self.networks = [model for model, _ in loaded]
        self.preprocessing = loaded[0].preprocessing  # the same for every seed
        self.device, self.how = device, (batch_size, precision)
        self.clipped = 0

    def logits(self, images: Pixels | Centers) -> np.ndarray:
        """float32 (seeds, N, C), finite."""
        with engine.out_of_memory("evaluate.batch_size"):
            logits = engine.predict_side_by_side(self.networks, images, *self.how).cpu().numpy()
        self.clipped += limit(logits)
        return logits

    def of_split(self, path: Path | str, preprocessing: Preprocessing | None = None) -> np.ndarray:
        """The logits of a prepared set; `preprocessing` is the model's own unless given."""
        how = preprocessing or self.preprocessing
        return self.logits(imagesets.for_inference(load_split(path), how, self.device))

    def of_corruption(self, name: str, test: Split | Manifest, severities: int) -> np.ndarray:
        """The logits of a corruption's images, of all severities."""
        files = CORRUPTED / f"{name}.safetensors"
        center = self.preprocessing.center
        # Images in files were cut before they were corrupted: no margin is cut off again.
        whole = center and center._replace(resize=center.size)
        if files.exists():
            assert whole  # files always have to be cut
            return self.of_split(files, self.preprocessing._replace(center=whole))
        images = read_corrupted(CORRUPTED / f"{name}.npy", test, severities)
        other = whole and isinstance(test, Manifest) and whole.size != images.shape[1]
        resize = whole if other else None
        return self.logits(Pixels(images, self.preprocessing, self.device, resize=resize))


def main(name: str) -> None:
    settings = params.load(
        "runtime.device",
        "runtime.precision",
        "runtime.deterministic",
        "evaluate.batch_size",
        "corruptions.names",
        "corruptions.severities",
    )
    names, severities = corrupted_sets(settings.corruptions.names), settings.corruptions.severities
    device = engine.pick_device(settings.runtime.device, settings.runtime.deterministic)
    model = Model(name, device, settings.evaluate.batch_size, settings.runtime.precision)
    saved = {split: model.of_split(f"data/{split}.safetensors") for split in ("validation", "test")}
    for key in shifted_found():
        saved[f"shifted/{key}"] = model.of_split(SHIFTED / f"{key}.safetensors")
    first = distributed.rank() == 0
    seeds, count, classes = saved["test"].shape
    test = load_split("data/test.safetensors")
    shape = seeds, len(names), len(severities), count, classes
    corrupted = np.empty(shape if first else 0, np.float16)
    for number, corruption in enumerate(tqdm(names, name, unit="corruption")):
        scores = model.of_corruption(corruption, test, len(severities))
        if first:
            # 16 bits are finest near 0: the largest logit moves there, which no softmax notices.
            scores -= scores.max(-1, keepdims=True)
            model.clipped += limit(scores, float(np.finfo(np.float16).max))
            corrupted[:, number] = scores.reshape(seeds, len(severities), count, classes)
    if not first:
        return
    if model.clipped:
        print(f"{name} diverged: {model.clipped} logits are clipped, too large or not numbers")
    for part, array in {**saved, "corrupted": corrupted}.items():
        write_array(f"predictions/{name}/{part}.npy", array)
    seed_names = [path.name for path in paths(f"models/{name}")]
    write_json(f"predictions/{name}/seeds.json", seed_names)
    score(name, test.labels, names, severities, load_info("data/info.json").whole_imagenet)
    print(f"predictions/{name}, metrics/evaluate/{name}.json, metrics/evaluate/{name}.csv")


if __name__ == "__main__":
    run(main, lambda: ["teacher", "clip", "ce", *variant_names()], parallel=True)
