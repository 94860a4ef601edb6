"""Training CLIP with its contrastive loss on images captioned with their class names."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from richkd.base import memory
from richkd.base.errors import InputError
from richkd.base.resume import Checkpoint
from richkd.clip.zero_shot import ClipModel, fill, preprocess
from richkd.engine import autocast, divergence, free_memory
from richkd.params import ClipTraining

CHECKPOINT_EVERY = 20  # steps


class Captioned(NamedTuple):
    """Images to caption: pixels in [0, 1], (N, 3, H, H), labels int64 (N,), the classes' names.

    `superclasses` maps a class's name to its superclass's, for captions with {kind}.
    """

    pixels: Tensor
    labels: Tensor
    classes: Sequence[str]
    superclasses: Mapping[str, str]


def train_clip(
    clip: ClipModel,
    captioned: Captioned,
    training: ClipTraining,
    precision: str,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Train CLIP with the contrastive loss on images and captions made from their class names.

    As in CLIP, an image and the caption of any other image of its batch are a negative pair, even
    if both images have the same class: with few classes that keeps the logit scale low.

    Returns a row `{step, loss}` every 20 steps, with the mean loss of the steps. A killed run goes
    on from its last row. Raises InputError if the training diverges.
    """
    import open_clip

    network, expected, tokens_of = clip
    pixels, labels, classes, superclasses = captioned
    device = pixels.device
    _check_memory(network, device)
    images = torch.cat([preprocess(part, expected) for part in pixels.split(1000)])
    texts = [[*map(fill(x, superclasses), classes)] for x in training.captions]
    tokens = torch.stack([tokens_of(rows) for rows in texts]).to(device)
    optimizer, scheduler = _optimizer(network, training)
    contrastive = open_clip.ClipLoss()
    logit_scale = network.get_parameter("logit_scale")
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "scheduler": scheduler}
    history = _resume(checkpoint, parts, device)
    network.train()
    total = torch.zeros((), device=device)
    recorded = history[-1]["step"] if history else 0  # the step of the last row
    steps = range(recorded, training.steps)
    progress = tqdm(steps, "clip", training.steps, initial=recorded, unit="step")
    for step in progress:
        ids, captions = _draw(step, training, len(labels), device)
        batch = images[ids].contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            image, text, scale = network(batch, tokens[captions, labels[ids]])
        loss = contrastive(image.float(), text.float(), scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            logit_scale.clamp_(0, math.log(100))  # as CLIP's authors did
        total += loss.detach()
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == training.steps:
            mean = (total / (done - recorded)).item()
            last = (batch, tokens[0]) if done == training.steps else None
            if wrong := _wrong(network, mean, last):
                raise InputError(f"clip: diverged by step {done}, {wrong}: lower clip.training.lr")
            progress.set_postfix(loss=f"{mean:.3f}")
            history.append({"step": done, "loss": mean})
            recorded = done
            total.zero_()
            checkpoint.save(history=history, **{k: x.state_dict() for k, x in parts.items()})
    return history


def _check_memory(network: nn.Module, device: torch.device) -> None:
    """InputError if gradients and AdamW's two moments, each as large as the weights, do not fit."""
    needed = 3 * sum(x.nbytes for x in network.parameters())
    memory.check("gradients of clip.model", needed, free_memory(device), "make it smaller")


@torch.inference_mode()
def _wrong(network: nn.Module, loss: float, last: tuple[Tensor, Tensor] | None) -> str | None:
    """How the training diverged, in words; None if it did not.

    `last` are images and tokens after the last step: finite weights can be so large that the
    features are not finite.
    """
    if (wrong := divergence(network, loss)) or last is None:
        return wrong
    network.eval()
    outputs = network(*last)
    network.train()
    finite = all(bool(output.isfinite().all()) for output in outputs)
    return None if finite else "the features are not finite"


def _optimizer(network: nn.Module, training: ClipTraining) -> tuple[AdamW, OneCycleLR]:
    """The optimizer, and the schedule of its learning rate."""
    decay = training.weight_decay
    optimizer = AdamW(network.parameters(), training.lr, weight_decay=decay, fused=True)
    return optimizer, OneCycleLR(optimizer, training.lr, training.steps, cycle_momentum=False)


def _resume(
    checkpoint: Checkpoint, parts: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """Load the parts' states from the checkpoint, if there is one; the rows so far."""
    state = checkpoint.load(device)
    if not state:
        return []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    history: list[dict[str, Any]] = state["history"]
    return history


def _draw(
    step: int, training: ClipTraining, images: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The images of a step's batch, and for each the number of its caption template: int64 (B,)."""
    draw = torch.Generator(device).manual_seed(training.seed * 1_000_003 + step)
    shape = (min(training.batch_size, images),)
    ids = torch.randint(images, shape, generator=draw, device=device)
    captions = torch.randint(len(training.captions), shape, generator=draw, device=device)
    return ids, captions
