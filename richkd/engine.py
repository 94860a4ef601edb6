"""Training and inference on a data set that lives on the device.

A batch is two index vectors, image ids and view ids; teachers are tables looked up by them
(`richkd.cache`). There is no DataLoader, no teacher in the loop and no host sync in a step.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from tqdm import tqdm

from richkd.dataset import Split
from richkd.errors import InputError
from richkd.params import Training
from richkd.resume import Checkpoint
from richkd.views import Views

VALIDATIONS = 10  # a run; validating after every epoch would double the time of a small one


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises InputError for `cuda` without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is 'cuda': no CUDA device here, use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def to_input(
    images: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W) on the device."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))
    return pixels.sub_(mean).div_(std)  # in place, and channels last as the images came


class ResidentSet:
    """Images padded and normalised once, on the device; `batch` gathers views of them."""

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        views: Views,
        device: torch.device,
    ):
        border = [(0, 0), (views.pad, views.pad), (views.pad, views.pad), (0, 0)]
        padded = np.pad(split.images, border)  # black, before normalising
        self.padded = to_input(padded, mean, std, device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.views, self.device = views, device

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, ids: Tensor, view_ids: Tensor) -> Tensor:
        """The views `view_ids` (B,) of the images `ids` (B,): float32 (B, 3, H, W)."""
        crops = self.views.crop(self.padded, ids, view_ids)
        # Convolutions of small networks: 1.3 times as fast on two cores as in NCHW.
        return crops.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, batch_size: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D), float32, of normalised images, in eval mode."""
    was_training = model.training
    model.eval()
    # Some networks fail on no images at all: one tells the shapes, and none of its rows is kept.
    inputs = images if len(images) else images.new_zeros(1, *images.shape[1:])
    outputs = []
    with autocast(images.device, precision):
        for batch in inputs.split(batch_size):
            outputs.append(model(batch.contiguous(memory_format=torch.channels_last)))
    model.train(was_training)
    logits, features = zip(*outputs)
    return tuple(torch.cat(parts)[: len(images)].float() for parts in (logits, features))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def accuracy(logits: Tensor, labels: Tensor, top: int = 1) -> float:
    """Share of the images whose label is among the `top` largest logits."""
    hits = logits.topk(top, dim=1).indices == labels[:, None]
    return hits.any(1).double().mean().item()


def fit(
    model: nn.Module,
    objective: nn.Module,
    data: ResidentSet,
    validation: tuple[Tensor, Tensor],
    training: Training,
    seed: int,
    precision: str,
    checkpoint: Checkpoint,
    title: str,
) -> list[dict[str, float]]:
    """Train `model`, and what `objective` learns, with SGD; returns a row an epoch.

    `objective(output, labels, ids, view_ids, draw)` returns the loss terms by name, `loss` first,
    as `richkd.objectives.Objective` does.

    A row has the mean of each loss term, the training accuracy and, ten times a run, the accuracy
    on `validation` (normalised images, labels) if it holds any. What is random in an epoch follows
    from the seed and the epoch's number alone, so a run that goes on from its checkpoint ends, on a
    CPU, bit for bit where the unbroken one does. The model is left as the last epoch leaves it.
    """
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(
        parameters,
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,
    )
    batch_size = min(training.batch_size, len(data))
    steps = math.ceil(len(data) / batch_size)
    scheduler = _schedule(optimizer, training, steps)
    parts = {"model": model, "objective": objective, "optimizer": optimizer, "scheduler": scheduler}
    history: list[dict[str, float]] = []
    if state := checkpoint.load(data.device):
        history = state.pop("history")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    model.train()
    first = len(history)
    progress = tqdm(range(first, training.epochs), title, training.epochs, initial=first, unit="epoch")
    for epoch in progress:
        draw = torch.Generator(data.device).manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(data), generator=draw, device=data.device)
        view_ids = data.views.sample(len(data), draw)
        sums = torch.zeros((), device=data.device)
        for ids, view in zip(order.split(batch_size), view_ids.split(batch_size)):
            labels = data.labels[ids]
            with autocast(data.device, precision):
                output = model(data.batch(ids, view))
            terms = objective(output, labels, ids, view, draw)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            scheduler.step()
            hits = (output.logits.argmax(1) == labels).float().mean()
            sums = sums + torch.stack([*terms.values(), hits]).detach() * len(ids)
        names = [*terms, "train_accuracy"]
        history.append({"epoch": epoch + 1, **dict(zip(names, (sums / len(data)).tolist()))})
        if not math.isfinite(history[-1]["loss"]):
            raise InputError(f"{title}: the loss is {history[-1]['loss']} in epoch {epoch + 1}: lower lr")
        due = (epoch + 1) % max(1, training.epochs // VALIDATIONS) == 0 or epoch + 1 == training.epochs
        images, labels = validation
        if due and len(labels):
            logits, _ = predict(model, images, 100, precision)
            history[-1]["validation_accuracy"] = accuracy(logits, labels)
            progress.set_postfix(validation_accuracy=f"{history[-1]['validation_accuracy']:.3f}")
        states = {name: part.state_dict() for name, part in parts.items()}
        checkpoint.save(history=history, **states)
    return history


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """Stepped once a batch; `steps` batches an epoch."""
    if training.schedule == "step":
        return MultiStepLR(optimizer, [epoch * steps for epoch in training.milestones])
    total = training.epochs * steps
    return OneCycleLR(optimizer, training.lr, total, cycle_momentum=False)
