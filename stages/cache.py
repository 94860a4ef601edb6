"""Run a teacher, `teacher` or `clip`, on the views of every training image, once and for all."""

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from richkd import classifiers, engine, params, weights
from richkd.base import distributed, resume
from richkd.base.files import read_json, write_json
from richkd.clip.zero_shot import ZeroShot, architecture, class_embeddings, tokenizer
from richkd.data import imagesets
from richkd.data.dataset import load_split
from richkd.teachers import caching
from richkd.teachers import lookup as cache
from stages import run

VALIDATION = "data/validation.safetensors"


def main(name: str) -> None:
    p = params.load(
        "views", "runtime.device", "runtime.precision", "runtime.deterministic",
        f"cache.{name}", "cache.top_k", "cache.batch_size",
    )  # fmt: skip
    device = engine.start(p.runtime.device, p.runtime.deterministic)
    train, validation = load_split(cache.TRAIN), load_split(VALIDATION)
    (path,) = weights.paths(f"models/{name}")
    model, mean, std, center = classifiers.load_classifier(path, device)
    data = imagesets.for_training(train, mean, std, p.views, center, device)
    record = read_json(f"{path}.json")
    more = {}
    if name == "clip":
        prompting = record["params"]["clip"]
        more = {"prompt_list": prompting["prompts"], "logit_scale": prompting["logit_scale"]}
    held = getattr(p.cache, name)
    made_from = cache.identity(path, data.views, held, p.cache.top_k, **more)
    view_ids = [] if held == "online" else [data.views.center]
    if held == "all":
        view_ids = range(len(data.views))
    key = resume.key(
        params.to_dict(p),
        [f"{path}.safetensors", f"{path}.json", cache.TRAIN, VALIDATION, __file__],
    )
    logits, features = caching.build(
        f"cache/{name}",
        model,
        data,
        view_ids,
        imagesets.for_inference(validation, mean, std, center, device),
        p.cache.batch_size,
        p.runtime.precision,
        made_from,
        key,
        p.cache.top_k,
    )
    if distributed.rank() > 0:
        return
    labels = torch.from_numpy(validation.labels).to(device)
    metrics = {}
    if len(labels):
        metrics["validation_accuracy"] = engine.accuracy(logits, labels)
        if name == "clip":
            metrics["single_prompt_accuracy"] = single_prompts(model, record, features, labels)
    write_json(f"metrics/cache/{name}.json", metrics)
    print(f"cache/{name}: {held} views of {len(train.labels)} images, metrics/cache/{name}.json")


def single_prompts(
    model: ZeroShot, record: dict[str, Any], features: Tensor, labels: Tensor
) -> dict[str, float]:
    """The zero-shot accuracy of each prompt on its own, and their mean: what the ensemble adds to."""
    result, tokens_of = {}, tokenizer(architecture(record))
    for prompt in record["prompts"]:
        classifier = class_embeddings(model.clip, tokens_of, record["classes"], [prompt])
        result[prompt] = engine.accuracy(features @ classifier.T, labels)
    return {"mean": fmean(result.values()), **result}


if __name__ == "__main__":
    run(main, "teacher", "clip", parallel=True)
