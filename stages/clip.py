"""Make CLIP, trained here or ready-made, a zero-shot classifier of the classes."""

from types import SimpleNamespace

import torch

from richkd import engine, params, weights
from richkd.base import kept, resume
from richkd.base.files import sha256, write_json
from richkd.clip import zero_shot
from richkd.clip.training import Captioned, train_clip
from richkd.clip.zero_shot import ClipModel, Input, Tokenizer, ZeroShot
from richkd.data import imagesets
from richkd.data.dataset import Info, load_info, load_split
from richkd.data.views import Preprocessing
from stages import run

INFO, CAPTIONED = "data/info.json", "data/captioned.safetensors"


def main() -> None:
    settings = params.load("clip", "runtime.device", "runtime.precision", "runtime.deterministic")
    device = engine.pick_device(settings.runtime.device, settings.runtime.deterministic)
    info, wanted = load_info(INFO), settings.clip
    prompts, tokens_of = zero_shot.templates(wanted.prompts), zero_shot.tokenizer(wanted.model)
    checkpoint = resume.Checkpoint(
        "clip", resume.key(params.to_dict(settings), [INFO, CAPTIONED, __file__])
    )
    kept.forget("models/clip")
    metrics, made_from, quick_gelu = {}, {INFO: sha256(INFO)}, False
    if wanted.source == "train":
        fills = [zero_shot.fill(prompt, info.superclasses) for prompt in prompts]
        tokens_of([fill(name) for fill in fills for name in info.classes])  # none is too long
        clip, metrics["loss"] = train(settings, info, tokens_of, device, checkpoint)
        made_from[CAPTIONED] = sha256(CAPTIONED)
    else:
        network, quick_gelu, files = zero_shot.use_ready_made(wanted)
        clip = ClipModel(network.to(device), zero_shot.input_of(network), tokens_of)
        made_from |= files
    network, expected, _ = clip

    metrics["logit_scale"] = network.get_parameter("logit_scale").exp().item()
    scale = metrics["logit_scale"] if wanted.logit_scale == "model" else wanted.logit_scale
    embeddings = zero_shot.class_embeddings(
        network, tokens_of, info.classes, prompts, info.superclasses
    )
    record = {
        "kind": "clip",
        "model": params.to_dict(wanted.model),
        "quick_gelu": quick_gelu,
        "embed_dim": embeddings.shape[1],
        "input": expected._asdict(),
        "center": expected.center._asdict() if info.folders else None,
        "classes": info.classes,
        "prompts": prompts,
        "scale": scale,
        "params": params.to_dict(settings),
        "data": made_from,
        "metrics": metrics,
        **weights.provenance(device),
    }
    if wanted.source == "train":
        record["seed"] = wanted.training.seed
    if info.superclasses:
        record["superclasses"] = info.superclasses
    classifier = ZeroShot(network, embeddings, scale, expected)
    weights.save("models/clip/seed0", classifier.state_dict(), record)
    write_json("metrics/train/clip.json", metrics)
    kept.keep("models/clip", [checkpoint.path])
    print(f"models/clip: a classifier of {len(info.classes)} classes, metrics/train/clip.json")


@engine.out_of_memory("clip.training.batch_size, or the sizes in clip.model")
def train(
    settings: SimpleNamespace,
    info: Info,
    tokens_of: Tokenizer,
    device: torch.device,
    checkpoint: resume.Checkpoint,
) -> tuple[ClipModel, float]:
    """A CLIP with small towers, trained on the captioned images, and its last loss."""
    split = load_split(CAPTIONED, len(info.classes))
    expected = Input(settings.clip.model.image_size, info.mean, info.std)
    unchanged = Preprocessing([0.0] * 3, [1.0] * 3, expected.center)  # CLIP normalises itself
    images = imagesets.for_inference(split, unchanged, device)
    torch.manual_seed(settings.clip.training.seed)
    clip = ClipModel(zero_shot.create_clip(settings.clip.model).to(device), expected, tokens_of)
    captioned = Captioned(
        torch.cat([batch.clone() for batch in images.split(256)]),
        torch.from_numpy(split.labels).to(device),
        info.classes,
        info.superclasses,
    )
    history = train_clip(
        clip, captioned, settings.clip.training, settings.runtime.precision, checkpoint
    )
    return clip, history[-1]["loss"]


if __name__ == "__main__":
    run(main)
