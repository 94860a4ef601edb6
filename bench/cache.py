"""Images a second of the cache stage against the bare forward of the same model.

ours  `caching.build`, all of it: views cut, tables allocated and written, files moved into place
bare  the model's forward on the same batches, which are there already
"""

import contextlib
import io
import tempfile

import torch

from bench.common import alternate, report, speedup, spread
from richkd import models
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.engine import start
from richkd.teachers import caching


def main(
    *,
    arch: str = "resnet56",
    images: int = 300,
    held: int = 3,
    batch_size: int = 100,
    repeats: int = 7,
) -> None:
    """`held` is the number of views; all 162 of 50,000 images share the same fixed costs."""
    where = start()
    torch.manual_seed(0)
    pixels = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8)
    split = Split(pixels.numpy(), torch.zeros(images, dtype=torch.int64).numpy())
    data = ResidentSet(split, [0.5] * 3, [0.25] * 3, Views(32, 32, 4, True), where)
    model = models.create(arch, 100).to(where, memory_format=torch.channels_last)
    held_views = torch.linspace(0, len(data.views) - 1, held).long().tolist()
    batches = [
        data.batch(ids, torch.full_like(ids, view))
        for view in held_views
        for ids in torch.arange(images, device=where).split(batch_size)
    ]

    def ours() -> None:
        # build works in a folder beside its result, and shows sizes and a bar.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                none = batches[0][:0]
                caching.build("table", model, data, held_views, none, batch_size, "fp32", {}, "key")

    @torch.inference_mode()
    def bare() -> None:
        model.eval()
        for inputs in batches:
            model(inputs)

    times = alternate({"ours": ours, "bare": bare}, repeats)
    rates = {name: [held * images / t for t in values] for name, values in times.items()}
    rows = {name: spread("images_per_second", values) for name, values in rates.items()}
    rows["ours / bare"] = speedup(times["bare"], times["ours"])
    report(
        "cache", rows, goal="ours / bare at least 0.85",
        arch=arch, images=images, views=held, batch_size=batch_size, repeats=repeats,
    )  # fmt: skip


if __name__ == "__main__":
    main()
