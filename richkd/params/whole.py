"""The experiment: every section of `params.yaml` as a frozen dataclass.

`load` checks the whole file, so that a mistake anywhere stops the first stage that runs, and
returns only the parts a stage names, so that it cannot read what its `params:` in `dvc.yaml` does
not declare.
"""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from richkd import models
from richkd.base.errors import InputError, one_line
from richkd.params.explain import explain
from richkd.params.images import (
    CORRUPTION_SOURCES,
    Cifar,
    Corruptions,
    Digits,
    Folder,
    Folders,
    ImageNet,
    Views,
)
from richkd.params.kinds import Count, Name, Share, Text, list_of, section
from richkd.params.sources import (
    Cache,
    Clip,
    Fusion,
    MdistillerTeacher,
    Teacher,
    TorchvisionTeacher,
    TrainedClip,
)
from richkd.params.students import BaselineParams, Crd, Distill, Training


@section
class Runtime:
    """Where and how precisely; part of the experiment, since both change the numbers."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    deterministic: bool  # kernels that give the same bits again on the same device
    step: Literal["auto", "eager", "graph", "compile"]  # auto: graph where that is possible
    seeds_at_once: Count  # students trained side by side on one device


@section
class Evaluate:
    models: list_of(Literal["teacher", "clip", "ce", "kd", "L", "F", "LF"])
    batch_size: Count


@section
class Calibration:
    bins: Count
    threshold: Share  # confident means a largest probability of at least this


@section
class Params:
    dataset: Annotated[Digits | Cifar | ImageNet | Folder, Field(discriminator="name")]
    views: Annotated[Views, Field(discriminator="augmentation")]
    runtime: Runtime
    teacher: Annotated[Teacher, Field(discriminator="source")]
    clip: Annotated[Clip, Field(discriminator="source")]
    cache: Cache
    student: Training
    fusion: Fusion
    crd: Crd
    baseline: BaselineParams
    distill: Distill
    corruptions: Annotated[Corruptions, Field(discriminator="source")]
    shifted: dict[Name, Text | Annotated[tuple[Text, ...], Field(min_length=2, max_length=2)]]
    evaluate: Evaluate
    calibration: Calibration

    def __post_init__(self) -> None:
        for key in ("teacher", "student"):
            network = getattr(self, key)
            known_there = isinstance(network, TorchvisionTeacher)
            arch = f"torchvision/{network.arch}" if known_there else network.arch
            if arch.startswith("torchvision/"):
                from richkd.models import torchvision  # and torch, which take seconds

                try:
                    torchvision.check(arch)
                except InputError as error:
                    raise InputError(f"{key}.arch: {error}") from None
            elif arch not in models.names():
                allowed = ", ".join(models.names())
                raise InputError(
                    f"{key}.arch is {arch!r}: must be one of {allowed}, torchvision/<name>"
                )
            if isinstance(network, Training):
                late = [epoch for epoch in network.milestones if epoch >= network.epochs]
                if network.schedule == "step" and late:
                    raise InputError(
                        f"{key}.milestones is {late}: must be below {network.epochs} epochs"
                    )
        self._check_files()
        if self.runtime.step == "compile" and self.runtime.seeds_at_once > 1:
            raise InputError(
                f"runtime.seeds_at_once is {self.runtime.seeds_at_once}: must be 1 where runtime.step "
                "is 'compile', whose graphs share one memory"
            )
        if isinstance(self.clip, TrainedClip):
            towers = self.clip.model
            if towers.text_width % towers.text_heads:
                raise InputError(
                    f"clip.model.text_heads is {towers.text_heads}: must divide text_width, "
                    f"{towers.text_width}"
                )
            if not self.dataset.captioned_images:
                raise InputError(
                    "dataset.captioned_images is 0: clip.source train needs images to train on"
                )
        if isinstance(self.teacher, MdistillerTeacher) and self.dataset.name != "cifar100":
            raise InputError("teacher.source is 'mdistiller': these teachers know cifar100 alone")
        allowed = CORRUPTION_SOURCES[self.dataset.name]
        if self.corruptions.source not in allowed:
            raise InputError(
                f"corruptions.source is {self.corruptions.source!r}: must be "
                f"{' or '.join(map(repr, allowed))} for {self.dataset.name}"
            )
        trained = ["teacher", "clip", *self.baseline.variants, *self.distill.variants]
        if set(trained) != set(self.evaluate.models):
            raise InputError(
                f"evaluate.models is {list(self.evaluate.models)}: must be {trained}, the teachers "
                "and what baseline.variants and distill.variants train"
            )

    def _check_files(self) -> None:
        """What goes with images in files, and what with those in arrays."""
        files, views = isinstance(self.dataset, Folders), self.views
        needed = "resized_crop" if files else "padded_crop"
        if views.augmentation != needed:
            raise InputError(
                f"views.augmentation is {views.augmentation!r}: must be {needed!r} for {self.dataset.name}"
            )
        if files:
            for key, bounds in (("scale", views.scale), ("ratio", views.ratio)):
                if bounds[0] > bounds[1] or key == "scale" and bounds[1] > 1:
                    raise InputError(
                        f"views.{key} is {list(bounds)}: must be two numbers, the smaller first"
                        + (", at most 1" if key == "scale" else "")
                    )
            if views.resize < views.size:
                raise InputError(
                    f"views.resize is {views.resize}: must be at least views.size, {views.size}"
                )
            for name in ("teacher", "clip"):
                if getattr(self.cache, name) == "all":
                    raise InputError(
                        f"cache.{name} is 'all': there is no end of views of resized_crop"
                    )
        for name, path in self.shifted.items():
            if isinstance(path, str) != files:
                kind = "a folder" if files else "two .npy files, images and labels"
                raise InputError(
                    f"shifted.{name} is {path!r}: must be {kind} for {self.dataset.name}"
                )


def load(*keys: str, path: Path | str = "params.yaml") -> SimpleNamespace:
    """Check the whole file and return the parts named: sections, or `section.key`.

    `load("runtime", "distill.seeds")` has `.runtime` whole and of `.distill` only `.seeds`.
    Raises InputError naming the key, its value and what is allowed.
    """
    try:
        # YAML 1.2, as DVC writes it: 1e-05 is a number, and no key may stand twice.
        raw = YAML(typ="safe", pure=True).load(Path(path).read_text()) or {}
        # JSON, since strict checks then take a list for a tuple, and nothing else for it.
        params = TypeAdapter(Params).validate_json(json.dumps(raw))
    except (YAMLError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as YAML: {one_line(error)}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error.errors(), Params)}") from None
    chosen = SimpleNamespace()
    for key in keys:
        scope, value, (*parents, name) = chosen, params, key.split(".")
        for parent in parents:
            value = getattr(value, parent)
            if not hasattr(scope, parent):
                setattr(scope, parent, SimpleNamespace())
            scope = getattr(scope, parent)
        setattr(scope, name, getattr(value, name))
    return chosen


def to_dict(chosen: Any) -> Any:
    """What `load` returned, or parts of it, as plain dicts and lists: to record beside a model."""
    return json.loads(
        json.dumps(chosen, default=lambda x: asdict(x) if is_dataclass(x) else vars(x))
    )
