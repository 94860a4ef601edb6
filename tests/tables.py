"""Caches of small teachers, made and read whole."""

from pathlib import Path

import numpy as np
import torch

from richkd.teachers import caching
from richkd.teachers import lookup as cache

PARTS = ("logits", "features", "classes")
VALIDATION = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(name, teacher, data, view_ids=range(18), key="key", made_from=(), top_k=None):
    return caching.build(
        f"cache/{name}", teacher, data, view_ids, VALIDATION, 4, "fp32", dict(made_from), key, top_k
    )


def shards(name, part):
    return [np.load(path) for path in sorted(Path(f"cache/{name}").glob(f"{part}-*.npy"))]


def table(name, num_classes=None):
    parts = {part: shards(name, part) for part in PARTS}
    rows = {part: torch.from_numpy(np.concatenate(x)) for part, x in parts.items() if x}
    views = {part: x.view(-1, 22, x.shape[1]) for part, x in rows.items()}
    return cache.Table(**views, num_classes=num_classes)
