"""Images a second of the cache stage beside the bare forward of the same model.

ours  the whole of `caching.build`: views cut, tables allocated and written, files moved into place
bare  the model's forward on the same batches, which lie on the device before the clock starts

Run it: `python -m bench.cache`.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence

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


def main(
    *,
    arch: str = "resnet56",
    images: int = 300,
    views: int = 3,
    batch_size: int = 100,
    repeats: int = 7,
) -> None:
    """`views` of the 162 views are cached. All views of 50,000 images have the same fixed costs."""
    device = pick_device()
    torch.manual_seed(0)
    split = random_images(torch.zeros(images, dtype=torch.int64))
    data = ResidentSet(split, PREPROCESSING, Views(32, 32, 4, True), device)
    model = models.create(arch, CLASSES).to(device).to(memory_format=torch.channels_last)
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
