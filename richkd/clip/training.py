"""Training CLIP with its contrastive loss on images captioned with their class names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.clip.zero_shot import Input, Tokenizer, preprocess
from richkd.engine import autocast
from richkd.params import ClipTraining

CHECKPOINT_EVERY = 20  # steps


def fit(
    clip: nn.Module,
    expected: Input,
    tokens_of: Tokenizer,
    training: ClipTraining,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    precision: str,
    checkpoint: Checkpoint,
) -> list[dict[str, float]]:
    """Train CLIP with the contrastive loss on images and captions made from their class names.

    As in CLIP, every other pair of a batch is a negative, those of the same class too: with few
    classes that holds the logit scale down.

    Pixels in [0, 1], (N, 3, H, H); labels (N,). Returns a row of the mean loss every 20 steps,
    where a killed run goes on. Images are resized and normalised once.
    """
    import open_clip

    device = pixels.device
    images = torch.cat([preprocess(part, expected) for part in pixels.split(1000)])
    texts = [[caption.format(name) for name in classes] for caption in training.captions]
    tokens = torch.stack([tokens_of(rows) for rows in texts]).to(device)
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
    progress = tqdm(
        range(first, training.steps), "clip", training.steps, initial=first, unit="step"
    )
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
                raise InputError(
                    f"clip: the loss is {history[-1]['loss']} at step {done}: lower lr"
                )
            progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
            total.zero_()
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save(history=history, **states)
    return history
