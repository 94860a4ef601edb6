"""Small teachers as tables of random numbers, and terms as params.yaml names them."""

import torch

from richkd.params import Crd, Kd
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import Recipe
from richkd.teachers.table import Shards, Streamed, Table

SCALES = {"teacher": 1.0, "clip": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(views=18, classes=4, dim=12, seed=0):
    """A teacher of 22 images."""
    draw = generator(seed)
    shapes = {"logits": (views, 22, classes), "features": (views, 22, dim)}
    return Table({k: torch.randn(shape, generator=draw) for k, shape in shapes.items()}, classes)


def recipe(alpha=0.7, lam=0.7):
    return Recipe(alpha, lam, SCALES, {})


def fused(alpha=0.7, lam=0.7):
    """A teacher of 18 views and a CLIP of one."""
    return Fused(recipe(alpha, lam), table(), table(1, dim=10, seed=1))


def streamed(teacher, device=torch.device("cpu")):
    """The same rows in shards, left where they are; of a fused teacher both tables."""
    if isinstance(teacher, Fused):
        both = (streamed(x, device) for x in (teacher.teacher, teacher.clip))
        return Fused(teacher.recipe, *both)
    parts = {name: list(x.flatten(0, 1).split(50)) for name, x in teacher.parts.items()}
    views, images, _ = teacher.parts["logits"].shape
    return Streamed(Shards(parts, views, images, teacher.num_classes), device)


def on(device, teacher):
    """The same table, or both of a fused teacher, on another device."""
    if isinstance(teacher, Fused):
        return Fused(teacher.recipe, *(on(device, x) for x in (teacher.teacher, teacher.clip)))
    return Table({k: x.to(device) for k, x in teacher.parts.items()}, teacher.num_classes)


def kd(weight=3.0, temperature=3.0, **more):
    return Kd(weight=weight, temperature=temperature, **more)


def crd(weight=0.8, **more):
    options = {"dim": 8, "num_negatives": 16, "negatives": "auto", "temperature": 0.1}
    return Crd(weight=weight, **options | {"momentum": 0.5} | more)
