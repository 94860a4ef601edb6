"""A whole LF training step as preset cifar100 has it: resnet32x4 to resnet8x4, batch 64.

ours   `richkd.train.fit.Run`: images on the device, the teacher a table, CRD by products with the
       whole bank
plain  as research code has it: torchvision transforms of PIL images in a DataLoader, the teacher's
       forward in every step, negatives drawn by numpy, CRD by gathers of (batch, K + 1, dim)
bare   the student's forward and backward on one batch that is on the device already
others ours with one parameter changed: what the parameter costs or gains

CLIP is a table of the centre views in both. Only the images that the steps need are there, with all
their views; the CRD banks and the labels are those of the whole training set.
Run it: `python -m bench.step`.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bench.common import CIFAR100, Case, Sizes, alternate, report, speedup, spread
from bench.crd import PlainMemory
from bench.input import PlainImages
from bench.protocol import ALPHA, KD, LAM, NETWORKS, Networks, Protocol, stepper
from richkd import models
from richkd.data.dataset import Split
from richkd.engine import pick_device
from richkd.train.fit import Run
from richkd.train.objective import Batch
from richkd.train.terms import Contrast

TOLERANCE = 1e-3  # relative, between ours and the plain loss: tables have 16 bits
CHANGES: dict[str, dict[str, Any]] = {
    "deterministic": {"deterministic": True},
    "shared negatives": {"negatives": "shared"},
    "all negatives": {"negatives": "all"},
    "bf16": {"precision": "bf16"},
    "eager": {"step": "eager"},
    "compile": {"step": "compile"},
    "compile, bf16": {"step": "compile", "precision": "bf16"},
    "compile, bf16, all negatives": {"step": "compile", "precision": "bf16", "negatives": "all"},
}
ON_A_CPU = ("deterministic", "shared negatives", "compile")


class PlainSamples(PlainImages):
    """(image, label, index, negatives) of one sample; `others` has by class all other samples."""

    def __init__(self, split: Split, others: list[np.ndarray], negatives: int):
        super().__init__(split)
        self.others, self.negatives = others, negatives

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        image, label = super().__getitem__(i)
        return image, label, i, np.random.choice(self.others[label], self.negatives)


class PlainStep:
    """The plain step, from the weights, heads and banks that `ours` has now."""

    def __init__(self, ours: Run, online: nn.Module, protocol: Protocol):
        """`online` is the conventional teacher."""
        contrast = _contrast(ours)
        # The heads of the student, the teacher and CLIP, in this order.
        heads = [part for part in contrast.modules() if isinstance(part, nn.Linear)]
        self.online, self.clip = online, protocol.clip
        self.crd_weight = ours.objective.options["crd"].weight
        self.network = copy.deepcopy(ours.model).to(memory_format=torch.contiguous_format)
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
        self.memory = PlainMemory(contrast.memory, protocol.labels.numpy())

    def loss(self, images: Tensor, labels: Tensor, ids: Tensor, negatives: Tensor) -> Tensor:
        with torch.no_grad():
            teaching = self.online(images)
        output = self.network(images)
        clip = {name: part[0, ids].float() for name, part in self.clip.parts.items()}
        fused = ALPHA * teaching.logits + (1 - ALPHA) * clip["logits"]
        log = F.log_softmax(output.logits / KD.temperature, dim=1)
        target = F.softmax(fused / KD.temperature, dim=1)
        kd = F.kl_div(log, target, reduction="batchmean") * KD.temperature**2
        features = output.features, teaching.features, clip["features"]
        s, t, c = (F.normalize(head(x)) for head, x in zip(self.heads, features))
        crd = self.memory(s, F.normalize(LAM * t + (1 - LAM) * c), ids, negatives)
        ce = F.cross_entropy(output.logits, labels)
        return ce + KD.weight * kd + self.crd_weight * crd

    def stepper(self, loader: DataLoader[Any], steps: int, device: torch.device) -> Case:
        """`steps` steps on batches of `loader`, which never ends."""
        optimizer = torch.optim.SGD(
            [*self.network.parameters(), *self.heads.parameters()],
            lr=0.05,
            momentum=0.9,
            weight_decay=5e-4,
        )
        batches = iter(loader)
        self.network.train()

        def case() -> None:
            for _ in range(steps):
                inputs = (part.to(device, non_blocking=True) for part in next(batches))
                loss = self.loss(*inputs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()

        return case


def main(
    *,
    sizes: Sizes = CIFAR100,
    networks: Networks = NETWORKS,
    steps: int | None = None,
    workers: int = 2,
    repeats: int = 7,
    changes: Sequence[str] | None = None,
) -> None:
    """A repeat is `steps` steps: if None, 30 on a GPU and 2 on a CPU.

    `changes` are names in CHANGES: if None, all on a GPU and ON_A_CPU on a CPU. ValueError where
    ours and the plain way compute different losses.
    """
    device = pick_device()
    cuda = device.type == "cuda"
    steps = steps or (30 if cuda else 2)
    online = models.create(networks.teacher, sizes.classes).to(device).eval().requires_grad_(False)
    teacher_dim = cast(int, online.feature_dim)
    protocol = Protocol(sizes, steps * sizes.batch_size, teacher_dim, device)
    ours = protocol.run(networks.student, "LF")
    plain = PlainStep(ours, online, protocol)
    difference = agree(ours, plain, protocol)

    loader = plain_loader(protocol.split, plain.memory, sizes.batch_size, workers)
    cases = {
        "ours": stepper([ours], steps),
        "plain": plain.stepper(loader, steps, device),
        "bare": bare_stepper(ours, steps),
    }
    if changes is None:
        changes = tuple(CHANGES) if cuda else ON_A_CPU
    for name in changes:
        case = stepper([protocol.run(networks.student, "LF", **CHANGES[name])], steps)
        cases[name] = _deterministic(case) if name == "deterministic" else case

    times = alternate(cases, repeats)
    rows = {
        name: spread("ms_per_step", [1000 * t / steps for t in each])
        for name, each in times.items()
    }
    rows["plain / ours"] = speedup(times["plain"], times["ours"])
    rows["ours / bare"] = speedup(times["ours"], times["bare"])
    for name in changes:
        rows[f"plain / {name}"] = speedup(times["plain"], times[name])
        rows[f"{name} / ours"] = speedup(times[name], times["ours"])
    report(
        "step",
        rows,
        goal="plain / ours at least 5 (10 on a GPU), ours / bare at most 1.25",
        **networks._asdict(),
        **sizes._asdict(),
        workers=workers,
        steps_a_repeat=steps,
        repeats=repeats,
        tables="all views of the images, CLIP the centre view, in memory",
        relative_loss_difference=difference,
    )


def agree(ours: Run, plain: PlainStep, protocol: Protocol) -> float:
    """The largest relative difference of both losses on the same inputs, over two rounds.

    The second round sees the banks as the first has left them. Writes the answers of the plain
    way's teacher for the first images to the table of ours. ValueError above TOLERANCE.
    """
    data, device = protocol.data, protocol.data.device
    ids = torch.arange(protocol.sizes.batch_size, device=device)
    view_ids = data.views.sample(len(ids), torch.Generator(device).manual_seed(1))
    images, labels = data.batch(ids, view_ids), data.labels[ids]
    memory = _contrast(ours).memory
    torch.backends.cudnn.allow_tf32 = False  # both round alike here
    for part, rows in zip(protocol.teacher.parts.values(), plain.online(images)):
        part[view_ids, ids] = rows.half()
    differences = []
    for seed in (2, 3):
        draws = [torch.Generator(device).manual_seed(seed) for _ in range(2)]
        terms = ours.objective(ours.model(images), Batch(labels, ids, view_ids, draws[0]))
        negatives = memory.draw(ids, draws[1])
        mine = ours.objective.total(terms.values()).item()
        theirs = plain.loss(images.contiguous(), labels, ids, negatives).item()
        if not abs(mine - theirs) <= TOLERANCE * abs(theirs):
            raise ValueError(f"on the same inputs our loss is {mine}, the plain one {theirs}")
        differences.append(abs(mine - theirs) / abs(theirs))
    torch.backends.cudnn.allow_tf32 = True
    return max(differences)


def plain_loader(
    split: Split, memory: PlainMemory, batch_size: int, workers: int
) -> DataLoader[Any]:
    return DataLoader(
        PlainSamples(split, memory.others, memory.negatives),
        batch_size,
        sampler=_endless(len(split.labels)),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def bare_stepper(ours: Run, steps: int) -> Case:
    """Forward and backward of a copy of the student on the first images as they are."""
    network, images = copy.deepcopy(ours.model), ours.images
    ids = torch.arange(ours.batch_size, device=ours.device)
    batch = images.batch(ids, torch.full_like(ids, images.views.center))
    labels = images.labels[ids]

    def case() -> None:
        for _ in range(steps):
            network.zero_grad()
            F.cross_entropy(network(batch).logits, labels).backward()

    return case


def _contrast(run: Run) -> Contrast:
    contrast = run.objective.terms["crd"]
    assert isinstance(contrast, Contrast)
    return contrast


def _deterministic(case: Case) -> Case:
    """`case` with deterministic kernels. They are a setting of the whole process."""

    def wrapped() -> None:
        pick_device(deterministic=True)
        case()
        pick_device()

    return wrapped


def _endless(n: int) -> Iterator[int]:
    """Indices below `n`, in a new order each time round."""
    return itertools.chain.from_iterable(torch.randperm(n).tolist() for _ in itertools.count())


if __name__ == "__main__":
    main()
