"""A whole LF training step as preset cifar100 has it: resnet32x4 to resnet8x4, batch 64.

ours   `richkd.train.fit.Run`: images on the device, the teacher a table, CRD by products with the bank
plain  as research code has it: torchvision transforms of PIL images in a DataLoader, the teacher's
       forward in every step, negatives drawn by numpy, CRD by gathers of (batch, K + 1, dim)
bare   the student's forward and backward on one batch that is there already
others ours with one thing changed: what each of the params costs or gains

CLIP is a table of the centre views in both. Only the images that the steps need are held, with all
their views; the CRD banks and the labels are those of the whole training set.
"""

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.common import alternate, report, speedup, spread
from bench.crd import PlainMemory
from bench.protocol import (
    ALPHA,
    CE_WEIGHT,
    CLASSES,
    FEATURE_WEIGHT,
    LAM,
    LOGIT_WEIGHT,
    MEAN,
    PAD,
    STD,
    TEMPERATURE,
    Protocol,
    stepper,
)  # fmt: skip
from richkd import models
from richkd.data.dataset import Split
from richkd.engine import start

TOLERANCE = 1e-3  # relative, between ours and the plain loss: tables have 16 bits
ONE_THING = {
    "deterministic": {"deterministic": True},
    "shared negatives": {"shared": True},
    "bf16": {"precision": "bf16"},
    "eager": {"step": "eager"},
    "compile": {"step": "compile"},
    "compile, bf16": {"step": "compile", "precision": "bf16"},
}
ON_A_CPU = ("deterministic", "shared negatives")


class PlainImages(Dataset):
    """(image, label, index, negatives) of one sample."""

    def __init__(self, split: Split, others: list[np.ndarray], negatives: int):
        """`others` has the samples of all other classes, by class."""
        self.split, self.others, self.negatives = split, others, negatives
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[1:3], padding=PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, np.ndarray]:
        image, label = Image.fromarray(self.split.images[index]), self.split.labels[index]
        negatives = np.random.choice(self.others[label], self.negatives)
        return self.transform(image), label, index, negatives


def main(
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    samples: int = 50_000,
    negatives: int = 16_384,
    dim: int = 128,
    batch_size: int = 64,
    steps: int | None = None,
    workers: int = 2,
    repeats: int = 7,
) -> None:
    """A repeat is `steps` steps. Raises RuntimeError where ours and plain compute another loss."""
    where = start()
    cuda = where.type == "cuda"
    steps = steps or (30 if cuda else 2)
    online = models.create(teacher, CLASSES).to(where).eval().requires_grad_(False)
    protocol = Protocol(
        samples=samples, held=steps * batch_size, negatives=negatives, dim=dim,
        batch_size=batch_size, teacher_dim=online.feature_dim, device=where,
    )  # fmt: skip
    data, views, labels = protocol.data, protocol.data.views, protocol.labels
    clip = protocol.clip.parts

    ours = protocol.run(student, "LF")
    contrast = ours.objective.terms["crd"]
    memory = contrast.memory
    plain_network = copy.deepcopy(ours.model).to(memory_format=torch.contiguous_format)
    heads = contrast.student_head, contrast.teacher_head, contrast.clip_head
    plain_heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
    plain_memory = PlainMemory(memory, labels.numpy())

    def plain_loss(images: Tensor, labels: Tensor, ids: Tensor, negatives: Tensor) -> Tensor:
        with torch.no_grad():
            teaching = online(images)
        output = plain_network(images)
        fused = ALPHA * teaching.logits + (1 - ALPHA) * clip["logits"][0, ids].float()
        log = F.log_softmax(output.logits / TEMPERATURE, dim=1)
        target = F.softmax(fused / TEMPERATURE, dim=1)
        kd = F.kl_div(log, target, reduction="batchmean") * TEMPERATURE**2
        features = output.features, teaching.features, clip["features"][0, ids].float()
        s, t, c = (F.normalize(head(x)) for head, x in zip(plain_heads, features))
        crd = plain_memory(s, F.normalize(LAM * t + (1 - LAM) * c), ids, negatives)
        ce = F.cross_entropy(output.logits, labels)
        return CE_WEIGHT * ce + LOGIT_WEIGHT * kd + FEATURE_WEIGHT * crd

    def check() -> float:
        """The largest relative difference in loss; the second round sees the banks of the first."""
        ids = torch.arange(batch_size, device=where)
        view_ids = views.sample(batch_size, torch.Generator(where).manual_seed(1))
        images = data.batch(ids, view_ids)
        for part, rows in zip(protocol.teacher.parts.values(), online(images)):
            part[view_ids, ids] = rows.half()
        differences = []
        for seed in (2, 3):
            draws = [torch.Generator(where).manual_seed(seed) for _ in range(2)]
            output = ours.model(images)
            terms = ours.objective(output, data.labels[ids], ids, view_ids, draws[0])
            mine, drawn = terms["loss"].item(), memory.draw(ids, draws[1])
            theirs = plain_loss(images.contiguous(), data.labels[ids], ids, drawn).item()
            if not abs(mine - theirs) <= TOLERANCE * abs(theirs):
                raise RuntimeError(f"on the same inputs our loss is {mine}, the plain one {theirs}")
            differences.append(abs(mine - theirs) / abs(theirs))
        return max(differences)

    torch.backends.cudnn.allow_tf32 = False  # both round alike, for once
    difference = check()
    torch.backends.cudnn.allow_tf32 = True

    optimizer = torch.optim.SGD(
        [*plain_network.parameters(), *plain_heads.parameters()],
        lr=0.05, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    loader = DataLoader(
        PlainImages(protocol.split, plain_memory.others, negatives),
        batch_size,
        sampler=_endless(len(data)),
        num_workers=workers,
        pin_memory=cuda,
    )
    batches = iter(loader)
    plain_network.train()

    def plain() -> None:
        for _ in range(steps):
            inputs = (part.to(where, non_blocking=True) for part in next(batches))
            loss = plain_loss(*inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    bare_network = copy.deepcopy(ours.model)
    ids = torch.arange(batch_size, device=where)
    one = data.batch(ids, torch.full_like(ids, views.center))
    one_labels = data.labels[:batch_size]

    def bare() -> None:
        for _ in range(steps):
            bare_network.zero_grad()
            loss = F.cross_entropy(bare_network(one).logits, one_labels)
            loss.backward()

    cases = {"ours": stepper([ours], steps), "plain": plain, "bare": bare}
    changed = {name: how for name, how in ONE_THING.items() if cuda or name in ON_A_CPU}
    for name, how in changed.items():
        # The switch for all kernels is thrown around each of its steps.
        case = stepper([protocol.run(student, "LF", **how)], steps)
        cases[name] = _deterministic(case) if how.get("deterministic") else case

    times = alternate(cases, repeats)
    times = {name: [1000 * t / steps for t in values] for name, values in times.items()}
    rows = {name: spread("ms_per_step", values) for name, values in times.items()}
    rows["plain / ours"] = speedup(times["plain"], times["ours"])
    rows["ours / bare"] = speedup(times["ours"], times["bare"])
    for name in changed:
        rows[f"{name} / ours"] = speedup(times[name], times["ours"])
    report(
        "step",
        rows,
        goal="plain / ours at least 5 (10 on a GPU), ours / bare at most 1.25",
        teacher=teacher,
        student=student,
        samples=samples,
        negatives=negatives,
        dim=dim,
        batch_size=batch_size,
        workers=workers,
        steps_a_repeat=steps,
        repeats=repeats,
        tables=f"{len(views)} views of {len(data)} images, CLIP the centre view, in memory",
        relative_loss_difference=difference,
    )


def _deterministic(case):
    def wrapped() -> None:
        start(deterministic=True)
        case()
        start()

    return wrapped


def _endless(n: int) -> Iterator[int]:
    """Indices in a new order each time round."""
    return itertools.chain.from_iterable(torch.randperm(n).tolist() for _ in itertools.count())


if __name__ == "__main__":
    main()
