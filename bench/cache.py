"""Images a second of the cache stage beside the bare forward of the same model.

ours  the whole of `caching.build`: views cut, tables allocated and written, files moved into place
bare  the model's forward on the same batches, which lie on the device before the clock starts

On a GPU the table has 100,000 rows of a resnet32x4, on a CPU 900 of a resnet56.
Run it: `python -m bench.cache`.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.common import Case, alternate, report, speedup, spread
from bench.protocol import PREPROCESSING, random_images
from richkd import models
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.engine import pick_device
from richkd.teachers import caching

CLASSES = 100


class Work(NamedTuple):
    """What is cached: `views` of the 162 views of `images` images, by a network."""

    arch: str
    images: int
    views: int
    batch_size: int


ON_A_CPU = Work("resnet56", images=300, views=3, batch_size=100)
ON_A_GPU = Work("resnet32x4", images=50_000, views=2, batch_size=500)


def main(*, work: Work | None = None, repeats: int = 5) -> None:
    """All views of 50,000 images have the same fixed costs. None is the machine's own work."""
    device = pick_device()
    arch, images, views, batch_size = work or (ON_A_GPU if device.type == "cuda" else ON_A_CPU)
    torch.manual_seed(0)
    split = random_images(torch.zeros(images, dtype=torch.int64))
    data = ResidentSet(split, PREPROCESSING, Views(32, 32, 4, True), device)
    model = network(arch, data)
    view_ids = torch.linspace(0, len(data.views) - 1, views).long().tolist()
    batches = [
        data.batch(ids, torch.full_like(ids, view))
        for view in view_ids
        for ids in torch.arange(images, device=device).split(batch_size)
    ]
    inputs = caching.Inputs(data, view_ids, batches[0][:0])
    settings = caching.Settings(batch_size, "fp32")
    times = alternate(
        {"ours": build(model, inputs, settings), "bare": forward(model, batches)}, repeats
    )
    rows = {
        name: spread("images_per_second", [views * images / t for t in each])
        for name, each in times.items()
    }
    rows["ours / bare"] = speedup(times["bare"], times["ours"])
    report(
        "cache",
        rows,
        goal="ours / bare at least 0.85",
        arch=arch,
        images=images,
        views=views,
        batch_size=batch_size,
        repeats=repeats,
    )


def network(arch: str, data: ResidentSet) -> nn.Module:
    """A random network that has seen a batch: without BatchNorm's statistics deep ones overflow."""
    model = models.create(arch, CLASSES).to(data.device).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics are those of all batches so far
    ids = torch.arange(min(len(data), 256), device=data.device)
    with torch.no_grad():
        model(data.batch(ids, torch.zeros_like(ids)))
    return model


def build(model: nn.Module, inputs: caching.Inputs, settings: caching.Settings) -> Case:
    def case() -> None:
        said = io.StringIO()  # sizes and a bar
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),  # `build` writes below the working folder
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            caching.build("table", model, inputs, settings, {}, "key")

    return case


def forward(model: nn.Module, batches: Sequence[Tensor]) -> Case:
    @torch.inference_mode()
    def case() -> None:
        model.eval()
        for images in batches:
            model(images)

    return case


if __name__ == "__main__":
    main()
