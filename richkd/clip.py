"""CLIP (Radford et al., ICML 2021) as a teacher: training small towers, zero-shot classification."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from richkd.engine import autocast
from richkd.errors import InputError
from richkd.models import ModelOutput
from richkd.params import ClipModel, ClipTraining
from richkd.resume import Checkpoint
from richkd.weights import load_into

CHECKPOINT_EVERY = 20  # steps


def create(config: ClipModel) -> nn.Module:
    """open_clip's CLIP with small towers, freshly initialised."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(
        layers=list(config.vision_layers), width=config.vision_width, image_size=config.image_size
    )
    text = open_clip.CLIPTextCfg(
        context_length=config.context_length,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    return open_clip.CLIP(config.embed_dim, vision, text)


def tokenize(config: ClipModel, texts: list[str]) -> Tensor:
    """Token ids (texts, context_length); InputError where a text is longer than that."""
    import open_clip

    tokens = open_clip.tokenize(texts)  # zeros from the end of each text on
    longest = int(tokens.count_nonzero(1).max())
    if longest > config.context_length:
        length = config.context_length
        raise InputError(
            f"clip.model.context_length is {length}: the longest prompt or caption has {longest} tokens"
        )
    return tokens[:, : config.context_length]


def preprocess(pixels: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels in [0, 1], (N, 3, H, W), to CLIP's input (N, 3, size, size)."""
    resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(x, device=pixels.device).view(shape) for x in (mean, std))
    return (resized - mean) / std


class ZeroShot(nn.Module):
    """CLIP as a classifier: its logits are `scale` times the cosine of image and class embeddings.

    Called with pixels in [0, 1], (N, 3, H, W), it returns ModelOutput(logits (N, C), unit image
features (N, D)). `classifier` is the unit class embeddings (C, D); mean and std are those of
    CLIP's own input.
    """

    def __init__(
        self,
        clip: nn.Module,
        config: ClipModel,
        classifier: Tensor,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.clip, self.config, self.scale, self.mean, self.std = clip, config, scale, mean, std
        self.register_buffer("classifier", classifier)

    def forward(self, pixels: Tensor) -> ModelOutput:
        images = preprocess(pixels, self.config.image_size, self.mean, self.std)
        features = self.clip.encode_image(images, normalize=True).float()
        with torch.autocast(pixels.device.type, enabled=False):  # 16 bits would round the logits
            return ModelOutput(self.scale * features @ self.classifier.T, features)


def class_embeddings(
    clip: nn.Module, config: ClipModel, classes: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """Unit text embeddings (C, D): the mean over the prompts of the unit embeddings, normalised."""
    import open_clip

    device = next(clip.parameters()).device
    tokens = partial(tokenize, config)
    return open_clip.build_zero_shot_classifier(clip.eval(), tokens, classes, prompts, device=device).T


def load_zero_shot(path: Path | str, record: dict[str, Any]) -> ZeroShot:
    """The model that `stages.clip` saved; InputError where the weights do not fit the record."""
    config = ClipModel(**{key: _tuple(value) for key, value in record["model"].items()})
    classifier = torch.zeros(len(record["classes"]), config.embed_dim)
    scale, mean, std = (record[name] for name in ("scale", "mean", "std"))
    model = ZeroShot(create(config), config, classifier, scale, mean, std)
    load_into(model, f"{path}.safetensors")
    return model


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def fit(
    clip: nn.Module,
    config: ClipModel,
    training: ClipTraining,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    precision: str,
    checkpoint: Checkpoint,
) -> list[dict[str, float]]:
    """Train CLIP with the contrastive loss on images and captions made from their class names.

    As in CLIP, every other pair of a batch is a negative, those of the same class too: with few
    classes that holds the logit scale down.

    Pixels in [0, 1], (N, 3, H, W); labels (N,). Returns a row of the mean loss every 20 steps,
    where a killed run goes on. Images are resized and normalised once.
    """
    import open_clip

    device = pixels.device
    images = torch.cat([preprocess(part, config.image_size, mean, std) for part in pixels.split(1000)])
    texts = [[caption.format(name) for name in classes] for caption in training.captions]
    tokens = torch.stack([tokenize(config, rows) for rows in texts]).to(device)
    optimizer = torch.optim.AdamW(
        clip.parameters(), training.lr, weight_decay=training.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, training.steps, cycle_momentum=False
    )
    contrastive = open_clip.ClipLoss()
    parts = {"model": clip, "optimizer": optimizer, "scheduler": scheduler}
    history: list[dict[str, float]] = []
    if state := checkpoint.load(device):
        history = state.pop("history")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    clip.train()
    first = history[-1]["step"] if history else 0
    total = torch.zeros((), device=device)
    progress = tqdm(range(first, training.steps), "clip", training.steps, initial=first, unit="step")
    for step in progress:
        draw = torch.Generator(device).manual_seed(training.seed * 1_000_003 + step)
        shape = (min(training.batch_size, len(labels)),)
        ids = torch.randint(len(labels), shape, generator=draw, device=device)
        captions = torch.randint(len(tokens), shape, generator=draw, device=device)
        batch = images[ids].contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            image, text, scale = clip(batch, tokens[captions, labels[ids]])
        loss = contrastive(image.float(), text.float(), scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))  # as CLIP's authors did
        total += loss.detach()
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == training.steps:
            steps = done - (history[-1]["step"] if history else 0)
            history.append({"step": done, "loss": (total / steps).item()})
            if not math.isfinite(history[-1]["loss"]):
                raise InputError(f"clip: the loss is {history[-1]['loss']} at step {done}: lower lr")
            progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
            total.zero_()
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save(history=history, **states)
    return history
