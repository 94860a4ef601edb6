"""The experiment: every section of `params.yaml` as a frozen dataclass.

`load` checks the whole file, so that a mistake anywhere stops the first stage that runs. It returns
only the parts that a stage names, so that a stage cannot read what its `params:` in `dvc.yaml` do
not declare.
"""

import json
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from richkd import models
from richkd.base.errors import InputError, one_line
from richkd.params.explain import explain
from richkd.params.images import (
    CORRUPTION_SOURCES,
    FROST_SIDE,
    Cifar,
    Corruptions,
    Digits,
    Folder,
    Folders,
    GeneratedCorruptions,
    ImageNet,
    ResizedCrops,
    Views,
)
from richkd.params.kinds import Count, Name, Share, Text, section
from richkd.params.sources import (
    Cache,
    Clip,
    Fusion,
    MdistillerTeacher,
    Teacher,
    TorchvisionTeacher,
    TrainedClip,
)
from richkd.params.students import Distill, Training, Variant


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
    distill: Distill
    corruptions: Annotated[Corruptions, Field(discriminator="source")]
    shifted: dict[Name, Text | Annotated[tuple[Text, ...], Field(min_length=2, max_length=2)]]
    evaluate: Evaluate
    calibration: Calibration

    def __post_init__(self) -> None:
        """Raises InputError where sections do not go together."""
        _check_networks(self)
        _check_views(self)
        _check_shifted_sets(self)
        _check_runtime(self.runtime)
        _check_clip(self)
        _check_sources(self)
        for name, variant in self.distill.variants.items():
            _check_variant(f"distill.variants.{name}", variant, self)
        _check_variant_names(list(self.distill.variants))


def _check_networks(params: Params) -> None:
    """Known architectures, whose learning rate falls before the training ends."""
    for key, network in (("teacher", params.teacher), ("student", params.student)):
        try:
            models.check_name(_architecture(network))
        except InputError as error:
            raise InputError(f"{key}.arch: {error}") from None
        if isinstance(network, Training) and network.schedule == "step":
            if late := [epoch for epoch in network.milestones if epoch >= network.epochs]:
                raise InputError(
                    f"{key}.milestones is {late}: must be below {network.epochs} epochs"
                )


def _architecture(network: Teacher | Training) -> str:
    """The name by which `richkd.models` knows the network."""
    if isinstance(network, TorchvisionTeacher):
        return f"torchvision/{network.arch}"
    return network.arch


def _check_views(params: Params) -> None:
    """Padded crops of images in arrays, or resized crops of images in files."""
    views, dataset = params.views, params.dataset
    needed = "resized_crop" if isinstance(dataset, Folders) else "padded_crop"
    if views.augmentation != needed:
        raise InputError(
            f"views.augmentation is {views.augmentation!r}: must be {needed!r} for {dataset.name}"
        )
    if not isinstance(views, ResizedCrops):
        return
    for key, (low, high), limit in (("scale", views.scale, 1), ("ratio", views.ratio, None)):
        if low > high or limit and high > limit:
            raise InputError(
                f"views.{key} is {[low, high]}: must be two numbers, the smaller first"
                + (f", at most {limit}" if limit else "")
            )
    if views.resize < views.size:
        raise InputError(
            f"views.resize is {views.resize}: must be at least views.size, {views.size}"
        )
    for name in ("teacher", "clip"):
        if getattr(params.cache, name) == "all":
            raise InputError(
                f"cache.{name} is 'all': the number of views of resized_crop is not finite"
            )


def _check_shifted_sets(params: Params) -> None:
    """A path is a folder of images in files; a pair of paths is images and labels in arrays."""
    in_files = isinstance(params.dataset, Folders)
    for name, path in params.shifted.items():
        if isinstance(path, str) != in_files:
            kind = "a folder" if in_files else "two .npy files, images and labels"
            raise InputError(
                f"shifted.{name} is {path!r}: must be {kind} for {params.dataset.name}"
            )


def _check_runtime(runtime: Runtime) -> None:
    if runtime.step == "compile" and runtime.seeds_at_once > 1:
        raise InputError(
            f"runtime.seeds_at_once is {runtime.seeds_at_once}: must be 1 where runtime.step "
            "is 'compile', whose graphs share one memory"
        )


def _check_clip(params: Params) -> None:
    """Towers that can be built, and images to train them on."""
    if not isinstance(params.clip, TrainedClip):
        return
    towers = params.clip.model
    if towers.text_width % towers.text_heads:
        raise InputError(
            f"clip.model.text_heads is {towers.text_heads}: must divide text_width, "
            f"{towers.text_width}"
        )
    if not params.dataset.captioned_images:
        raise InputError(
            "dataset.captioned_images is 0: clip.source train needs images to train on"
        )


def _check_sources(params: Params) -> None:
    """Published teachers and corrupted images only for the data set that they belong to."""
    name, source = params.dataset.name, params.corruptions.source
    if isinstance(params.teacher, MdistillerTeacher) and name != "cifar100":
        raise InputError("teacher.source is 'mdistiller': these teachers know cifar100 alone")
    if source not in CORRUPTION_SOURCES[name]:
        allowed = " or ".join(map(repr, CORRUPTION_SOURCES[name]))
        raise InputError(f"corruptions.source is {source!r}: must be {allowed} for {name}")
    if (
        isinstance(params.corruptions, GeneratedCorruptions)
        and params.corruptions.photographs_needed
    ):
        if isinstance(params.views, ResizedCrops) and params.views.size >= FROST_SIDE:
            raise InputError(
                f"corruptions.frost is {params.corruptions.frost!r}: must be 'generated' where "
                f"views.size, {params.views.size}, is not below {FROST_SIDE}, the height of the "
                "lowest photograph"
            )


def _check_variant(key: str, variant: Variant, params: Params) -> None:
    """A variant has a term besides ce, and its teacher has what the term compares."""
    cached = params.cache.teacher
    if list(variant.terms) == ["ce"]:
        raise InputError(f"{key} names no term but ce: the student alone is trained anyway, as ce")
    for name, term in variant.terms.items():
        if not term.needs_maps:
            continue
        if (variant.teacher, cached) != ("teacher", "online"):
            raise InputError(
                f"{key}.{name} compares feature maps, which no table holds: set teacher: teacher "
                f"(now {variant.teacher}) and cache.teacher: online (now {cached})"
            )
        try:
            models.check_stages(_architecture(params.student), _architecture(params.teacher))
        except InputError as error:
            raise InputError(f"{key}.{name}: {error}") from None


def _check_variant_names(names: list[str]) -> None:
    """Names are folders, and some file systems take models/kd and models/KD for one folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise InputError(
                f"distill.variants has the names {other!r} and {name!r}: names must differ in more "
                "than the case of letters"
            )


@cache
def _checker() -> TypeAdapter[Params]:
    return TypeAdapter(Params)


def _read(path: Path | str) -> Params:
    try:
        text = Path(path).read_text()
        if alias := _first_alias(text):
            raise InputError(
                f"{path}: line {alias.start_mark.line + 1} has the alias *{alias.anchor}: write "
                "the value out, since -S for one of its places would silently change the others"
            )
        # YAML 1.2, as DVC writes it: 1e-05 is a number, and no key may stand twice.
        raw = YAML(typ="safe", pure=True).load(text) or {}
        # JSON, since strict checks then take a list for a tuple, and nothing else for it.
        return _checker().validate_json(json.dumps(raw))
    except (YAMLError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as YAML: {one_line(error)}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error.errors(), Params)}") from None


def _first_alias(text: str) -> AliasEvent | None:
    events = YAML(typ="safe", pure=True).parse(text)
    return next((event for event in events if isinstance(event, AliasEvent)), None)


def load(*keys: str, path: Path | str = "params.yaml") -> SimpleNamespace:
    """Check the whole file and return the parts named: sections, or what they hold.

    `load("runtime", "distill.seeds")` has `.runtime` whole and of `.distill` only `.seeds`;
    `load("distill.variants.LF")` has `.distill.variants.LF`. Raises InputError that names the key,
    its value and what is allowed.
    """
    params = _read(path)
    chosen = SimpleNamespace()
    for key in keys:
        value: Any = params
        scope = chosen
        parts = key.split(".")
        for depth, name in enumerate(parts):
            members = _members(value)
            if name not in members:
                place = ".".join(parts[:depth]) or path
                there = ", ".join(members) or "none"
                raise InputError(f"{place} has no {name!r}: there are {there}")
            value = members[name]
            if depth < len(parts) - 1:
                scope = vars(scope).setdefault(name, SimpleNamespace())
        setattr(scope, parts[-1], value)
    return chosen


def _members(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value if isinstance(value, dict) else {}


def to_dict(chosen: Any) -> Any:
    """What `load` returned, or parts of it, as plain dicts and lists: to record beside a model.

    What params.yaml may leave out is left out where it has its default value: a new option changes
    no record of an older run.
    """

    def plain(value: Any) -> dict[str, Any]:
        if isinstance(value, SimpleNamespace):
            return value.__dict__
        defaults = {field.name: field.default for field in fields(value)}
        return {key: held for key, held in _members(value).items() if held != defaults[key]}

    return json.loads(json.dumps(chosen, default=plain))
