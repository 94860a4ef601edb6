"""The experiment: every section of `params.yaml` as a frozen dataclass.

`load` checks the whole file, so that a mistake anywhere stops the first stage that runs. It returns
only the parts that a stage names, so that a stage cannot read what its `params:` in `dvc.yaml` do
not declare. Whether networks of torchvision and timm exist and take the images, and whether feature
maps go together, takes seconds to find out: `check_networks` does that, before any work.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from richkd import models
from richkd.base.errors import InputError, one_line
from richkd.params.explain import explain
from richkd.params.images import (
    CLASSES,
    CORRUPTION_SOURCES,
    FROST_SIDE,
    NUMBER_NAMES,
    PER_CLASS,
    Cifar,
    Corruptions,
    Dataset,
    Digits,
    Folders,
    GeneratedCorruptions,
    ResizedCrops,
    Views,
    num_classes,
    side,
)
from richkd.params.kinds import Batch, Name, Share, Text, section
from richkd.params.reading import read_yaml
from richkd.params.sources import (
    Cache,
    CheckpointTeacher,
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
    # Students trained side by side on one device.
    seeds_at_once: Annotated[int, Field(ge=1, le=1000)]
    tf32: bool  # CUDA's matrix products in training round to 10 bits first


@section
class Evaluate:
    batch_size: Batch


@section
class Calibration:
    bins: Annotated[int, Field(ge=1, le=10_000)]
    threshold: Share  # confident means a largest probability of at least this


@section
class Params:
    dataset: Annotated[Dataset, Field(discriminator="name")]
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
        _check_views(self)
        if isinstance(self.dataset, Digits):
            _check_digits(self.dataset)
        if isinstance(self.dataset, Cifar):
            _check_cifar(self.dataset)
        _check_teacher_and_student(self)
        _check_classes(self, num_classes(self.dataset))
        _check_shifted_sets(self)
        _check_runtime(self)
        _check_clip(self)
        _check_sources(self)
        _check_fusion(self)
        for name, variant in self.distill.variants.items():
            _check_variant(f"distill.variants.{name}", variant, self)
        _check_variant_names(list(self.distill.variants))


def _check_teacher_and_student(params: Params) -> None:
    """Networks of ours that there are; rates that fall before the training ends.

    Our own networks take all images of 16 x 16 pixels and more.
    """
    _check_normalisation(params.teacher)
    for key, network in _networks(params):
        name = _architecture(network)
        if not models.of_library(name):
            with _prefixed(f"{key}.arch"):
                models.check_name(name)
        if isinstance(network, Training) and network.schedule == "step":
            if late := [epoch for epoch in network.milestones if epoch >= network.epochs]:
                raise InputError(
                    f"{key}.milestones is {late}: must be below {network.epochs} epochs"
                )


def _networks(params: Params) -> list[tuple[str, Teacher | Training]]:
    return [("teacher", params.teacher), ("student", params.student)]


@contextmanager
def _prefixed(place: object) -> Iterator[None]:
    """An InputError within begins with the place that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(one_line(f"{place}: {error}")) from None


def _check_normalisation(teacher: Teacher) -> None:
    """A checkpoint needs mean and std, except of timm: timm itself says how to prepare images."""
    if not isinstance(teacher, CheckpointTeacher):
        return
    if (teacher.mean is None) != (teacher.std is None):
        missing = "mean" if teacher.mean is None else "std"
        raise InputError(f"teacher.{missing} is missing: must stand beside the other of mean, std")
    if teacher.as_published and not teacher.arch.startswith("timm/"):
        raise InputError("teacher.mean is missing: only networks of timm/<name> bring their own")


def _sides(network: Teacher | Training, params: Params) -> set[int]:
    """The sides, in pixels, of the square images that the network sees."""
    pixels = side(params.dataset, params.views)
    if not isinstance(network, CheckpointTeacher) or not network.as_published:
        return {pixels}
    published = models.published_input(network.arch, network.img_size).size
    own = published if isinstance(params.dataset, Folders) else pixels
    return {own, pixels} if params.cache.teacher == "online" else {own}


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


def _check_classes(params: Params, classes: int | None) -> None:
    """What must go with the number of classes; None where `prepare` has to count them."""
    dataset, top_k = params.dataset, params.cache.top_k
    if classes and classes < 2 and not isinstance(dataset, Cifar):
        raise InputError(f"dataset.classes is {list(dataset.classes)}: must name at least two")
    if classes and top_k and top_k >= classes:
        raise InputError(
            f"cache.top_k is {top_k}: must be below the number of classes, {classes}, or null"
        )


def _check_weights(teacher: Teacher, classes: int | None) -> None:
    """Weights that torchvision has, and that know the classes."""
    if isinstance(teacher, TorchvisionTeacher):
        models.find_weights(teacher.arch, teacher.weights, classes)


def _check_digits(dataset: Digits) -> None:
    """Classes that there are, and an image a class in every part."""
    classes = dataset.classes if dataset.classes != "all" else ()
    if unknown := [name for name in classes if not re.fullmatch(NUMBER_NAMES, name)]:
        raise InputError(
            f"dataset.classes has {unknown[0]!r}: must be numbers, zero to ninety-nine"
        )
    needed = len(classes) or CLASSES["digits"]
    for key in ("validation_images", "test_images", "captioned_images"):
        if (count := getattr(dataset, key)) < needed:
            raise InputError(
                f"dataset.{key} is {count}: must be at least {needed}, one for each class"
            )


def _check_cifar(dataset: Cifar) -> None:
    """No more images than there are."""
    classes, per_class = CLASSES[dataset.name], PER_CLASS[dataset.name]
    left = classes * per_class - dataset.validation
    if left < classes:
        raise InputError(
            f"dataset.validation is {dataset.validation}: must leave an image a class, so at most "
            f"{classes * (per_class - 1)}"
        )
    # Validation takes the same number from every class, or one more from some.
    if dataset.train_per_class != "all" and dataset.train_per_class > (most := left // classes):
        raise InputError(
            f"dataset.train_per_class is {dataset.train_per_class}: must be all or at most {most}, "
            "what dataset.validation leaves of each class"
        )
    if dataset.captioned_images > left:
        raise InputError(
            f"dataset.captioned_images is {dataset.captioned_images}: must be at most {left}, "
            "what dataset.validation leaves"
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


def _check_runtime(params: Params) -> None:
    """Steps that the device and the images allow."""
    runtime = params.runtime
    if runtime.step == "compile" and runtime.seeds_at_once > 1:
        raise InputError(
            f"runtime.seeds_at_once is {runtime.seeds_at_once}: must be 1 where runtime.step "
            "is 'compile', whose graphs share one memory"
        )
    if runtime.step == "graph" and runtime.device == "cpu":
        raise InputError("runtime.step is 'graph': runtime.device cpu has no graphs, use auto")
    if runtime.step == "graph" and isinstance(params.dataset, Folders):
        raise InputError(
            f"runtime.step is 'graph': the images of {params.dataset.name} are in files, which "
            "graphs cannot read, use auto"
        )


def _check_clip(params: Params) -> None:
    """Templates name superclasses only if there are some; towers can be built and trained."""
    _check_templates("clip.prompts", params.clip.prompts, params)
    if not isinstance(params.clip, TrainedClip):
        return
    _check_templates("clip.training.captions", params.clip.training.captions, params)
    towers = params.clip.model
    if towers.text_width % towers.text_heads:
        raise InputError(
            f"clip.model.text_heads is {towers.text_heads}: must divide text_width, "
            f"{towers.text_width}"
        )
    images = params.dataset.captioned_images
    if images != "all" and images < 2:
        raise InputError(
            f"dataset.captioned_images is {images}: clip.source train needs images to train on, "
            "at least two"
        )


def _check_templates(key: str, templates: Sequence[str], params: Params) -> None:
    for text in templates:
        if "{kind}" in text and params.dataset.name != "cifar100":
            raise InputError(
                f"{key} has {text!r}: {{kind}} is the name of a superclass, and of the data sets "
                "cifar100 alone has superclasses"
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


def _check_fusion(params: Params) -> None:
    """What is fitted has validation images, unseen by the teacher; and all logits if needed."""
    fusion, dataset, source = params.fusion, params.dataset, params.teacher.source
    if fusion.per_class and fusion.alpha != "auto":
        raise InputError(
            f"fusion.per_class is true: needs fusion.alpha: auto, which it starts from (now "
            f"{fusion.alpha})"
        )
    images = dataset.validation_images if isinstance(dataset, Digits) else dataset.validation
    values = {key: getattr(fusion, key) for key in ("align", "alpha")}
    for key, value in values.items():
        if value in ("temperature", "standardize", "auto") and not images:
            raise InputError(
                f"fusion.{key} is {value!r}: is fitted on validation images, and "
                "dataset.validation is 0"
            )
        if (
            value in ("temperature", "auto")
            and source != "train"
            and fusion.seen_validation == "refuse"
        ):
            raise InputError(
                f"fusion.{key} is {value!r}: is fitted on validation images, and the teacher, of "
                f"teacher.source {source!r}, may have been trained on them, which makes the fit "
                "meaningless: set fusion.seen_validation: allow if it was not"
            )
    needing_whole_rows = {
        "fusion.align is 'standardize'": fusion.align == "standardize",
        "fusion.per_class is true": fusion.per_class,
    }
    for line, needs in needing_whole_rows.items():
        if needs and params.cache.top_k:
            raise InputError(
                f"{line}: needs all logits of an image, and cache.top_k keeps "
                f"{params.cache.top_k}: set cache.top_k: null"
            )


def _check_variant(key: str, variant: Variant, params: Params) -> None:
    """A variant has a term besides ce, and its teacher has what the term or a control needs."""
    cached = params.cache.teacher
    if variant.control and variant.teacher != "fused":
        raise InputError(
            f"{key}.control is {variant.control!r}: changes CLIP's logits in the fused teacher, so "
            f"it needs teacher: fused (now {variant.teacher})"
        )
    if variant.control == "cosines" and params.fusion.align != "none":
        raise InputError(
            f"{key}.control is 'cosines': leaves out the scale of CLIP's logits, so it needs "
            f"fusion.align: none (now {params.fusion.align})"
        )
    if variant.control and not any(term.compares_logits for term in variant.terms.values()):
        raise InputError(
            f"{key}.control is {variant.control!r}: changes CLIP's logits, so it needs a term that "
            f"compares logits, such as kd (now {', '.join(variant.terms)})"
        )
    if list(variant.terms) == ["ce"]:
        raise InputError(f"{key} names no term but ce: the student alone is trained anyway, as ce")
    for name, term in variant.terms.items():
        if term.needs_maps and (variant.teacher, cached) != ("teacher", "online"):
            raise InputError(
                f"{key}.{name} compares feature maps, which no table holds: set teacher: teacher "
                f"(now {variant.teacher}) and cache.teacher: online (now {cached})"
            )


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
        # JSON, since strict checks then take a list for a tuple, and nothing else for it.
        return _checker().validate_json(json.dumps(read_yaml(path)))
    except ValidationError as error:
        raise InputError(one_line(f"{path}: {explain(error.errors(), Params)}")) from None


def check_classes(count: int, path: Path | str = "params.yaml") -> None:
    """Raises InputError where the file does not go with the number of classes that were found.

    The file alone does not tell that number where every folder of images is a class.
    """
    params = _read(path)
    with _prefixed(path):
        _check_classes(params, count)
        _check_weights(params.teacher, count)


def check_networks(path: Path | str = "params.yaml") -> None:
    """Raises InputError where the networks do not exist, or do not go with the images or a loss.

    It imports torch and the libraries that the networks are of, which takes up to five seconds: too
    long for `load`, which all stages call.
    """
    params = _read(path)
    with _prefixed(path):
        for key, network in _networks(params):
            name, img_size = _architecture(network), getattr(network, "img_size", None)
            if not (models.of_library(name) or img_size):
                continue
            with _prefixed(f"{key}.arch"):
                models.check_name(name)
                if not isinstance(network, TorchvisionTeacher):
                    for pixels in _sides(network, params):
                        models.check_side(name, pixels, img_size)
        _check_weights(params.teacher, num_classes(params.dataset))
        student, teacher = _architecture(params.student), _architecture(params.teacher)
        for name, variant in params.distill.variants.items():
            for term, options in variant.terms.items():
                if options.needs_maps:
                    with _prefixed(f"distill.variants.{name}.{term}"):
                        models.check_stages(student, teacher)


def load(*keys: str, path: Path | str = "params.yaml") -> SimpleNamespace:
    """Check the file, but for `check_networks`; return the parts named, sections or what they hold.

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
