"""Train CLIP on captioned images and make it a zero-shot classifier of the classes."""

import torch

from richkd import clip, engine, params, resume, weights
from richkd.dataset import load_info, load_split
from richkd.files import sha256, write_json
from stages import run

DATA = ("data/captioned.safetensors", "data/info.json")


def main() -> None:
    p = params.load("clip.model", "clip.training", "clip.prompts", "clip.logit_scale", "runtime")
    device = engine.pick_device(p.runtime.device)
    info, captioned = load_info("data/info.json"), load_split("data/captioned.safetensors")
    torch.manual_seed(p.clip.training.seed)
    model = clip.create(p.clip.model).to(device)
    trained = params.to_dict([p.clip.model, p.clip.training, p.runtime])
    checkpoint = resume.Checkpoint("clip", resume.key(trained, [*DATA, __file__]))
    history = clip.fit(
        model,
        p.clip.model,
        p.clip.training,
        engine.to_input(captioned.images, [0.0] * 3, [1.0] * 3, device),
        torch.from_numpy(captioned.labels).to(device),
        info.classes,
        info.mean,
        info.std,
        p.runtime.precision,
        checkpoint,
    )
    own_scale = model.logit_scale.exp().item()
    scale = own_scale if p.clip.logit_scale == "model" else p.clip.logit_scale
    classifier = clip.class_embeddings(model, p.clip.model, info.classes, p.clip.prompts)
    zero_shot = clip.ZeroShot(model, p.clip.model, classifier, scale, info.mean, info.std)
    metrics = {"loss": history[-1]["loss"], "logit_scale": own_scale}
    record = {
        "kind": "clip",
        "model": params.to_dict(p.clip.model),
        "classes": info.classes,
        "prompts": list(p.clip.prompts),
        "scale": scale,
        "mean": info.mean,
        "std": info.std,
        "params": params.to_dict(p),
        "seed": p.clip.training.seed,
        "data": {path: sha256(path) for path in DATA},
        "metrics": metrics,
        **weights.provenance(device),
    }
    weights.save("models/clip/seed0", zero_shot.state_dict(), record)
    write_json("metrics/train/clip.json", metrics)
    checkpoint.remove()
    print(f"models/clip: zero-shot classifier of {len(info.classes)} classes, metrics/train/clip.json")


if __name__ == "__main__":
    run(main)
