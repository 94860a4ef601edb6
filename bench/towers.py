"""Images a second of CLIP's image tower as the stage `cache` runs it, 32x32 images enlarged.

On a GPU it runs in half precision. The weights are random: speed does not depend on them.
For a GPU: `python -m bench.towers`.
"""

import logging
from typing import Any

import torch

from bench.common import Case, alternate, report, spread
from bench.protocol import MEAN, STD
from richkd.clip.zero_shot import Input, ZeroShot, create_clip
from richkd.engine import pick_device
from richkd.params import ClipTowers

CLASSES = 100


def main(
    *,
    model: ClipTowers | str = "ViT-L-14",
    images: int = 4_000,
    batch_size: int = 500,
    repeats: int = 3,
) -> None:
    device = pick_device()
    logging.disable(logging.WARNING)  # open_clip warns of random weights
    clip: Any = create_clip(model)
    side = clip.visual.image_size
    expected = Input(side if isinstance(side, int) else side[0], MEAN, STD)
    zero_shot = ZeroShot(clip, torch.randn(CLASSES, clip.visual.output_dim), 100.0, expected)
    zero_shot = zero_shot.to(device).eval()
    pixels = torch.rand(batch_size, 3, 32, 32, device=device)
    times = alternate({"image tower": tower(zero_shot, pixels, images // batch_size)}, repeats)
    rows = {name: spread("images_per_s", [images / t for t in x]) for name, x in times.items()}
    report("towers", rows, model=str(model), images=images, batch_size=batch_size, repeats=repeats)


def tower(model: ZeroShot, pixels: torch.Tensor, batches: int) -> Case:
    @torch.inference_mode()
    def case() -> None:
        for _ in range(batches):
            model(pixels)

    return case


if __name__ == "__main__":
    main()
