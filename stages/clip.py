"""Make CLIP, trained here or ready-made, a zero-shot classifier of the classes."""

import torch
from torch import nn

from richkd import engine, params, weights
from richkd.base import download, resume
from richkd.base.files import sha256, write_json
from richkd.clip import training as clip_training
from richkd.clip import zero_shot as clip
from richkd.data import imagesets
from richkd.data.dataset import Info, load_info, load_split
from richkd.data.views import Center
from richkd.params import TrainedClip
from stages import run

INFO, CAPTIONED = "data/info.json", "data/captioned.safetensors"


def main() -> None:
    p = params.load("clip", "runtime.device", "runtime.precision", "runtime.deterministic")
    device = engine.start(p.runtime.device, p.runtime.deterministic)
    info = load_info(INFO)
    prompts, tokens_of = clip.templates(p.clip.prompts), clip.tokenizer(p.clip.model)
    metrics, made_from = {}, {INFO: sha256(INFO)}
    checkpoint = resume.Checkpoint(
        "clip", resume.key(params.to_dict(p), [INFO, CAPTIONED, __file__])
    )
    quick_gelu = False
    if p.clip.source == "train":
        expected = clip.Input(p.clip.model.image_size, info.mean, info.std)
        model, loss = train(
            p.clip, p.runtime.precision, info, expected, tokens_of, device, checkpoint
        )
        metrics["loss"] = loss
        made_from[CAPTIONED] = sha256(CAPTIONED)
    else:
        if p.clip.source == "pretrained":
            model, quick_gelu = clip.pretrained(p.clip.model, p.clip.tag)
        else:
            download.verify(p.clip.path, f"sha256:{p.clip.sha256}", "clip.path")
            model, quick_gelu = clip.from_checkpoint(p.clip.model, p.clip.tag, p.clip.path)
            made_from[p.clip.path] = p.clip.sha256
        expected = clip.input_of(model)
        model.to(device)

    metrics["logit_scale"] = model.logit_scale.exp().item()
    scale = metrics["logit_scale"] if p.clip.logit_scale == "model" else p.clip.logit_scale
    classifier = clip.class_embeddings(model, tokens_of, info.classes, prompts)
    record = {
        "kind": "clip",
        "model": params.to_dict(p.clip.model),
        "quick_gelu": quick_gelu,
        "embed_dim": classifier.shape[1],
        "input": expected._asdict(),
        "center": center_of(expected)._asdict() if info.folders else None,
        "classes": info.classes,
        "prompts": prompts,
        "scale": scale,
        "params": params.to_dict(p),
        "data": made_from,
        "metrics": metrics,
        **weights.provenance(device),
    }
    if p.clip.source == "train":
        record["seed"] = p.clip.training.seed
    zero_shot = clip.ZeroShot(model, classifier, scale, expected)
    weights.save("models/clip/seed0", zero_shot.state_dict(), record)
    write_json("metrics/train/clip.json", metrics)
    checkpoint.remove()
    print(
        f"models/clip: zero-shot classifier of {len(info.classes)} classes, metrics/train/clip.json"
    )


def center_of(expected: clip.Input) -> Center:
    """How files are cut, as open_clip does it."""
    return Center(expected.size, expected.size, expected.interpolation)


def train(
    p: TrainedClip,
    precision: str,
    info: Info,
    expected: clip.Input,
    tokens_of: clip.Tokenizer,
    device: torch.device,
    checkpoint: resume.Checkpoint,
) -> tuple[nn.Module, float]:
    """Small towers trained on the captioned images, and their last loss."""
    captioned = load_split(CAPTIONED)
    pixels = imagesets.for_inference(captioned, [0.0] * 3, [1.0] * 3, center_of(expected), device)
    torch.manual_seed(p.training.seed)
    model = clip.create(p.model).to(device)
    history = clip_training.fit(
        model,
        expected,
        tokens_of,
        p.training,
        torch.cat([batch.clone() for batch in pixels.split(256)]),
        torch.from_numpy(captioned.labels).to(device),
        info.classes,
        precision,
        checkpoint,
    )
    return model, history[-1]["loss"]


if __name__ == "__main__":
    run(main)
