"""Make CLIP, trained here or ready-made, a zero-shot classifier of the classes."""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from richkd import engine, params, weights
from richkd.base import download, resume
from richkd.base.files import sha256, write_json
from richkd.clip import zero_shot
from richkd.clip.training import Captioned, train_clip
from richkd.clip.zero_shot import ClipModel, Input, Tokenizer, ZeroShot
from richkd.data import imagesets
from richkd.data.dataset import Info, load_info, load_split
from richkd.data.views import Center, Preprocessing
from stages import run

INFO, CAPTIONED = "data/info.json", "data/captioned.safetensors"


class Obtained(NamedTuple):
    """A CLIP model with its weights, and what the record beside the classifier says of them."""

    clip: ClipModel
    quick_gelu: bool
    data: dict[str, str]  # the hash of each file that the weights come from
    metrics: dict[str, float]


def main() -> None:
    p = params.load("clip", "runtime.device", "runtime.precision", "runtime.deterministic")
    device = engine.pick_device(p.runtime.device, p.runtime.deterministic)
    info = load_info(INFO)
    prompts, tokens_of = zero_shot.templates(p.clip.prompts), zero_shot.tokenizer(p.clip.model)
    checkpoint = resume.Checkpoint(
        "clip", resume.key(params.to_dict(p), [INFO, CAPTIONED, __file__])
    )
    if p.clip.source == "train":
        (network, expected, _), quick_gelu, data, metrics = train(
            p, info, tokens_of, device, checkpoint
        )
    else:
        (network, expected, _), quick_gelu, data, metrics = take(p.clip, tokens_of, device)

    metrics["logit_scale"] = network.get_parameter("logit_scale").exp().item()
    scale = metrics["logit_scale"] if p.clip.logit_scale == "model" else p.clip.logit_scale
    embeddings = zero_shot.class_embeddings(network, tokens_of, info.classes, prompts)
    record = {
        "kind": "clip",
        "model": params.to_dict(p.clip.model),
        "quick_gelu": quick_gelu,
        "embed_dim": embeddings.shape[1],
        "input": expected._asdict(),
        "center": center_of(expected)._asdict() if info.folders else None,
        "classes": info.classes,
        "prompts": prompts,
        "scale": scale,
        "params": params.to_dict(p),
        "data": {INFO: sha256(INFO), **data},
        "metrics": metrics,
        **weights.provenance(device),
    }
    if p.clip.source == "train":
        record["seed"] = p.clip.training.seed
    classifier = ZeroShot(network, embeddings, scale, expected)
    weights.save("models/clip/seed0", classifier.state_dict(), record)
    write_json("metrics/train/clip.json", metrics)
    checkpoint.remove()
    print(
        f"models/clip: zero-shot classifier of {len(info.classes)} classes, metrics/train/clip.json"
    )


def train(
    p: SimpleNamespace,
    info: Info,
    tokens_of: Tokenizer,
    device: torch.device,
    checkpoint: resume.Checkpoint,
) -> Obtained:
    """A CLIP with small towers, trained on the captioned images."""
    split = load_split(CAPTIONED)
    expected = Input(p.clip.model.image_size, info.mean, info.std)
    unchanged = Preprocessing([0.0] * 3, [1.0] * 3, center_of(expected))  # CLIP normalises itself
    images = imagesets.for_inference(split, unchanged, device)
    torch.manual_seed(p.clip.training.seed)
    clip = ClipModel(zero_shot.create_clip(p.clip.model).to(device), expected, tokens_of)
    captioned = Captioned(
        torch.cat([batch.clone() for batch in images.split(256)]),
        torch.from_numpy(split.labels).to(device),
        info.classes,
    )
    history = train_clip(clip, captioned, p.clip.training, p.runtime.precision, checkpoint)
    return Obtained(clip, False, {CAPTIONED: sha256(CAPTIONED)}, {"loss": history[-1]["loss"]})


def take(p: params.Clip, tokens_of: Tokenizer, device: torch.device) -> Obtained:
    """A model of open_clip with open_clip's weights, or with those of a local file."""
    data = {}
    if p.source == "pretrained":
        network, quick_gelu = zero_shot.pretrained(p.model, p.tag)
    elif p.source == "checkpoint":
        download.verify(p.path, f"sha256:{p.sha256}", "clip.path")
        network, quick_gelu = zero_shot.from_checkpoint(p.model, p.tag, p.path)
        data = {p.path: p.sha256}
    clip = ClipModel(network.to(device), zero_shot.input_of(network), tokens_of)
    return Obtained(clip, quick_gelu, data, {})


def center_of(expected: Input) -> Center:
    """How open_clip cuts a file for the model."""
    return Center(expected.size, expected.size, expected.interpolation)


if __name__ == "__main__":
    run(main)
