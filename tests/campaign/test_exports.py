"""Architectures as ONNX, run beside torch: all in the campaign, else the first of each family."""

import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign.forked import Limits, forked

from richkd import models
from richkd.data.views import Center, Preprocessing
from richkd.models import FAMILIES
from richkd.use.answers import Description
from richkd.use.export import open_runner, write
from richkd.use.packaged import Packaged

pytestmark = pytest.mark.slow

TORCHVISION = ["torchvision/mobilenet_v3_small", "torchvision/resnet18", "torchvision/vit_b_16"]
NAMES = [
    name for row in zip_longest(*[*FAMILIES.values(), TORCHVISION[:1]]) for name in row if name
] + TORCHVISION[1:]


def test_every_architecture(tmp_path: Path, times: Callable[[int], int]) -> None:
    """Trained-like networks: their running statistics are those of their input."""
    assert {*models.names()} < {*NAMES}
    wrong = []
    for name in NAMES[: times(len(NAMES))]:

        def compare(name: str = name) -> None:
            if difference := differs(name, tmp_path / "x.onnx"):
                sys.exit(difference)

        # In a child, since onnxruntime's threads would end the children of other tests.
        ended = forked(tmp_path, compare, Limits(seconds=300))
        if ended.code != 0:
            wrong.append(f"{name}: {ended.reason}")
    assert wrong == []


def differs(name: str, path: Path) -> str:
    """Where the exported file and the network differ; nothing where they do not."""
    torch.manual_seed(0)
    published = name.startswith("torchvision/")
    side = 224 if published else 32
    network = models.create(name, 10)
    if not name.endswith("vit_b_16"):  # which has no running statistics
        network(torch.randn(8, 3, side // (2 if published else 1), side // (2 if published else 1)))
    center = Center(232, 224) if published else None
    look = Preprocessing([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], center)
    how = {"pixels": "uint8", "center": center and center._asdict(), "image_size": side}
    about = Description(name, name, ["a"] * 10, how, 0.7, {}, "", {})
    packaged = Packaged(network.eval(), look, 0.7).eval()
    write("onnx", packaged, about, path)
    sizes = [(1, 300, 240), (3, 224, 225)] if published else [(1, 32, 32), (5, 32, 32)]
    for images, height, width in sizes:
        pixels = np.random.default_rng(images).integers(
            0, 256, (images, 3, height, width), np.uint8
        )
        with torch.no_grad():
            expected = packaged(torch.from_numpy(pixels))
        for found, right in zip(open_runner("onnx", path)(pixels), expected):
            # A network that is not trained may have logits of some ten, with as many more rounded.
            size = max(1.0, float(right.abs().max()))
            largest = float(np.abs(found - right.numpy()).max()) / size
            if not largest < 1e-4 or (found.argmax(1) != right.numpy().argmax(1)).any():
                return f"{largest:.2g} on {images} images"
    return ""
