"""A whole LF training step as preset cifar100 has it: resnet32x4 to resnet8x4, batch 64.

ours   `engine.fit` itself: images on the device, the teacher a table, CRD by one product
plain  as research code has it: torchvision transforms of PIL images in a DataLoader, the teacher's
       forward in every step, negatives drawn by numpy, CRD by gathers of (batch, K + 1, dim)
bare   the student's forward and backward on one batch that is there already

CLIP is a table of the centre views in both. Only the images that the steps need are held, with all
their views; the CRD banks and the labels are those of the whole training set.
"""

import contextlib
import copy
import io
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
from richkd import models
from richkd.cache import Table
from richkd.dataset import Split
from richkd.distillation import FusedContrast, LogitDistillation, fused_logits
from richkd.engine import ResidentSet, fit, pick_device
from richkd.losses import ContrastiveMemory
from richkd.models import ModelOutput
from richkd.objectives import Objective
from richkd.params import Training
from richkd.views import Views

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CLASSES, CLIP_DIM, PAD = 100, 768, 4
CE_WEIGHT, LOGIT_WEIGHT, FEATURE_WEIGHT = 1.0, 3.0, 0.8
TEMPERATURE, ALPHA, LAM, CRD_TEMPERATURE, CRD_MOMENTUM = 3.0, 0.7, 0.7, 0.07, 0.5
TOLERANCE = 1e-4  # relative, between ours and the plain loss


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


class NoCheckpoint:
    """What `fit` saves an epoch; it trains one of two steps here."""

    def load(self, device: torch.device) -> None:
        return None

    def save(self, **state: object) -> None:
        pass


def main(
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    samples: int = 50_000,
    negatives: int = 16_384,
    dim: int = 128,
    batch_size: int = 64,
    steps: int = 2,
    workers: int = 2,
    repeats: int = 7,
) -> None:
    """A repeat is `steps` steps. Raises RuntimeError where ours and plain compute another loss."""
    where = pick_device("auto")
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (samples,))
    views, held = Views(32, 32, PAD, True), steps * batch_size
    pixels = torch.randint(256, (held, 32, 32, 3), dtype=torch.uint8)
    split = Split(pixels.numpy(), labels[:held].numpy())
    data = ResidentSet(split, MEAN, STD, views, where)

    online = models.create(teacher, CLASSES).to(where).eval().requires_grad_(False)
    network = models.create(student, CLASSES).to(where, memory_format=torch.channels_last)
    taught = [torch.randn(len(views), held, d, device=where) for d in (CLASSES, online.feature_dim)]
    clip = [torch.randn(1, held, d, device=where) for d in (CLASSES, CLIP_DIM)]
    tables = Table(*taught), Table(*clip)
    memory = ContrastiveMemory(
        samples, dim, negatives, CRD_TEMPERATURE, CRD_MOMENTUM, labels
    )
    contrast = FusedContrast(network.feature_dim, *tables, LAM, memory)
    kd = LogitDistillation(fused_logits(*tables, ALPHA), TEMPERATURE)
    terms = {"kd": (LOGIT_WEIGHT, kd), "crd": (FEATURE_WEIGHT, contrast)}
    objective = Objective(CE_WEIGHT, **terms).to(where)

    plain_network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    heads = contrast.student_head, contrast.teacher_head, contrast.clip_head
    plain_heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
    plain_memory = PlainMemory(memory, labels.numpy())

    def plain_loss(images: Tensor, labels: Tensor, ids: Tensor, negatives: Tensor) -> Tensor:
        with torch.no_grad():
            teaching = online(images)
        output = plain_network(images)
        fused = ALPHA * teaching.logits + (1 - ALPHA) * clip[0][0, ids]
        log = F.log_softmax(output.logits / TEMPERATURE, dim=1)
        target = F.softmax(fused / TEMPERATURE, dim=1)
        kd = F.kl_div(log, target, reduction="batchmean") * TEMPERATURE**2
        features = output.features, teaching.features, clip[1][0, ids]
        s, t, c = (F.normalize(head(x)) for head, x in zip(plain_heads, features))
        crd = plain_memory(s, F.normalize(LAM * t + (1 - LAM) * c), ids, negatives)
        ce = F.cross_entropy(output.logits, labels)
        return CE_WEIGHT * ce + LOGIT_WEIGHT * kd + FEATURE_WEIGHT * crd

    def check() -> float:
        """The largest relative difference in loss; the second round sees the banks of the first."""
        ids = torch.arange(batch_size, device=where)
        view_ids = views.sample(batch_size, torch.Generator(where).manual_seed(1))
        images = data.batch(ids, view_ids)
        for table, rows in zip(taught, online(images)):
            table[view_ids, ids] = rows
        differences = []
        for seed in (2, 3):
            draws = [torch.Generator(where).manual_seed(seed) for _ in range(2)]
            output = network(images)
            mine = objective(output, data.labels[ids], ids, view_ids, draws[0])["loss"].item()
            drawn = memory.draw(ids, draws[1])
            theirs = plain_loss(images.contiguous(), data.labels[ids], ids, drawn).item()
            if not abs(mine - theirs) <= TOLERANCE * abs(theirs):
                raise RuntimeError(f"on the same inputs our loss is {mine}, the plain one {theirs}")
            differences.append(abs(mine - theirs) / abs(theirs))
        return max(differences)

    difference = check()

    training = Training(
        arch=student, epochs=1, batch_size=batch_size, lr=0.05, schedule="step", milestones=(),
        momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    nothing = data.padded[:0], data.labels[:0]

    def ours() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar
            fit(network, objective, data, nothing, training, 0, "fp32", NoCheckpoint(), "ours")

    optimizer = torch.optim.SGD(
        [*plain_network.parameters(), *plain_heads.parameters()],
        lr=0.05, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    loader = DataLoader(
        PlainImages(split, plain_memory.others, negatives),
        batch_size,
        sampler=_endless(held),
        num_workers=workers,
        pin_memory=where.type == "cuda",
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

    bare_network = copy.deepcopy(network)
    ids = torch.arange(batch_size, device=where)
    one = data.batch(ids, torch.full_like(ids, views.center))
    one_labels = data.labels[:batch_size]

    def bare() -> None:
        for _ in range(steps):
            bare_network.zero_grad()
            loss = F.cross_entropy(bare_network(one).logits, one_labels)
            loss.backward()

    times = alternate({"ours": ours, "plain": plain, "bare": bare}, repeats)
    times = {name: [1000 * t / steps for t in values] for name, values in times.items()}
    rows = {name: spread("ms_per_step", values) for name, values in times.items()}
    rows["plain / ours"] = speedup(times["plain"], times["ours"])
    rows["ours / bare"] = speedup(times["ours"], times["bare"])
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
        tables=f"{len(views)} views of {held} images, CLIP the centre view, in memory",
        relative_loss_difference=difference,
    )


def _endless(n: int) -> Iterator[int]:
    """Indices in a new order each time round."""
    return itertools.chain.from_iterable(torch.randperm(n).tolist() for _ in itertools.count())


if __name__ == "__main__":
    main()
