"""Run a teacher, `teacher` or `clip`, once on the views of every training image; save a table."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from richkd import engine, model_records, params
from richkd.base import distributed, resume
from richkd.base.files import write_json
from richkd.classifiers import load_classifier, load_record
from richkd.clip.zero_shot import ClipRecord, ZeroShot, class_embeddings, tokenizer
from richkd.data import imagesets
from richkd.data.dataset import load_split
from richkd.data.views import RandomResizedCrop, Views
from richkd.teachers import caching, lookup
from stages import run

VALIDATION = "data/validation.safetensors"


def main(name: str) -> None:
    settings = params.load(
        "views",
        "runtime.device",
        "runtime.precision",
        "runtime.deterministic",
        f"cache.{name}",
        "cache.top_k",
        "cache.batch_size",
    )
    device = engine.pick_device(settings.runtime.device, settings.runtime.deterministic)
    train, validation = load_split(lookup.TRAIN), load_split(VALIDATION)
    (path,) = model_records.paths(f"models/{name}")
    model, preprocessing = load_classifier(path, device)
    data = imagesets.for_training(train, preprocessing, settings.views, device)
    cached = getattr(settings.cache, name)
    key = resume.key(
        params.to_dict(settings),
        [f"{path}.safetensors", f"{path}.json", lookup.TRAIN, VALIDATION, __file__],
    )
    logits, features = caching.build(
        f"cache/{name}",
        model,
        caching.Inputs(
            data,
            cached_view_ids(data.views, cached),
            imagesets.for_inference(validation, preprocessing, device),
        ),
        caching.Settings(
            settings.cache.batch_size, settings.runtime.precision, settings.cache.top_k
        ),
        lookup.identity(path, data.views, cached, settings.cache.top_k),
        key,
    )
    if distributed.rank() > 0:
        return
    labels = torch.from_numpy(validation.labels).to(device)
    metrics: dict[str, Any] = {}
    if len(labels):
        metrics["validation_accuracy"] = engine.accuracy(logits, labels)
        if isinstance(model, ZeroShot):
            record = cast(ClipRecord, load_record(path))
            metrics["single_prompt_accuracy"] = single_prompts(model, record, features, labels)
    write_json(f"metrics/cache/{name}.json", metrics)
    print(f"cache/{name}: {cached} views of {len(train.labels)} images, metrics/cache/{name}.json")


def cached_view_ids(views: Views | RandomResizedCrop, cached: str) -> Sequence[int]:
    """The views that the table holds; none for a teacher that runs along."""
    if cached == "online":
        return []
    if cached == "center":
        return [views.center]
    assert isinstance(views, Views)  # `richkd.params` refuses to hold all of endless crops
    return range(len(views))


def single_prompts(
    model: ZeroShot, record: ClipRecord, features: Tensor, labels: Tensor
) -> dict[str, float]:
    """The zero-shot accuracy with each prompt alone, and the mean of these accuracies.

    The accuracy with all prompts minus this mean is what the ensemble of prompts adds.
    """
    result, tokens_of = {}, tokenizer(record["model"])
    superclasses = record.get("superclasses", {})
    for prompt in record["prompts"]:
        classifier = class_embeddings(
            model.clip, tokens_of, record["classes"], [prompt], superclasses
        )
        result[prompt] = engine.accuracy(features @ classifier.T, labels)
    return {"mean": fmean(result.values()), **result}


if __name__ == "__main__":
    run(main, lambda: ["teacher", "clip"], parallel=True)
