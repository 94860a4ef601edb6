"""The experiment: every section of `params.yaml` as a frozen dataclass.

`load` checks the whole file, so that a mistake anywhere stops the first stage that runs, and
returns only the parts a stage names, so that it cannot read what its `params:` in `dvc.yaml` does
not declare.
"""

import json
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from richkd import corruptions, models
from richkd.errors import InputError, one_line
from richkd.explain import explain

section = partial(
    dataclass,
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Baseline = Literal["ce", "kd"]
Variant = Literal["L", "F", "LF"]
Corruption = Literal[*corruptions.BENCHMARK, *corruptions.EXTRA]


def _distinct(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


def _template(text: str) -> str:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError:  # a lone brace
        fields = []
    if fields != [""]:
        raise ValueError("must hold {} once, where the class name goes")
    return text


def _list_of(item: Any) -> Any:
    """A list with at least one item and none twice."""
    return Annotated[tuple[item, ...], Field(min_length=1), AfterValidator(_distinct)]


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Urls = _list_of(Annotated[str, Field(pattern="^https?://")])
Prompts = _list_of(Annotated[str, AfterValidator(_template)])


@section
class Digits:
    """The embedded data set, composed by `prepare`."""

    name: Literal["digits"]
    classes: Literal["all"] | _list_of(str)  # all, or the class names to keep
    train_per_class: Count  # labelled training images a class
    validation_images: Count
    test_images: Count
    captioned_images: Count  # what CLIP is trained on, composed of the training scans
    seed: Seed


@section
class Cifar:
    """CIFAR-100 or CIFAR-10 from the official archive."""

    name: Literal["cifar100", "cifar10"]
    urls: Urls  # tried in turn, unless `archive` is given
    archive: Text | None  # a local copy
    sha256: Sha256 | None  # of an archive that is not the official one
    train_per_class: Literal["all"] | Count  # labelled training images a class
    validation: Whole  # images taken from the training images; 0 trains on all of them
    captioned_images: Whole  # training images with captions, where CLIP is trained
    seed: Seed  # of the split


@section
class Folders:
    """Images in folders, `train/<class>/` and `val/<class>/`; the files stay where they are.

    `val` is the test set, as in ImageNet's papers.
    """

    root: Text  # holds train/ and val/; recorded as it is written here
    classes: Literal["all"] | _list_of(str)  # all, or the folders to keep
    expect_train: Count | None  # images that must be there; null: as many as there are
    expect_val: Count | None
    unreadable: Whole  # files that may be cut off or no images; they are named and left out
    train_per_class: Literal["all"] | Count  # labelled training images a class
    validation: Whole  # images taken from the training images; 0 trains on all of them
    captioned_images: Whole  # training images with captions, where CLIP is trained
    seed: Seed  # of the split


@section
class ImageNet(Folders):
    """ILSVRC 2012; `val` in folders, or flat with the devkit beside it."""

    name: Literal["imagenet"]


@section
class Folder(Folders):
    """Any other such data set."""

    name: Literal["folder"]
    names: Text | None  # a JSON of readable names by folder; null: the folders' own


@section
class PaddedCrops:
    """Every crop of the image padded by `pad` pixels, and its mirror: as many as are finite."""

    augmentation: Literal["padded_crop"]
    pad: Whole
    flip: bool


@section
class ResizedCrops:
    """A crop of random size and shape, resized; without it, the centre of the resized image."""

    augmentation: Literal["resized_crop"]
    size: Annotated[int, Field(ge=16)]  # side of what the networks see, in pixels
    resize: Count  # the shorter side, before the centre is cut out
    scale: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # of the area
    ratio: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # width to height
    flip: bool


Views = PaddedCrops | ResizedCrops


@section
class Runtime:
    """Where and how precisely; part of the experiment, since both change the numbers."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    deterministic: bool  # kernels that give the same bits again on the same device
    step: Literal["auto", "eager", "graph", "compile"]  # auto: graph where that is possible
    seeds_at_once: Count  # students trained side by side on one device


@section
class Training:
    """A classifier and how SGD trains it."""

    arch: str
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    lr: Positive
    schedule: Literal["step", "onecycle"]
    milestones: tuple[Count, ...]  # epochs at which `step` multiplies the rate by 0.1
    momentum: Share
    weight_decay: Weight


@section
class TrainedTeacher(Training):
    source: Literal["train"]
    seed: Seed
    min_accuracy: Share  # on the test images; below, the teacher stage fails


@section
class CheckpointTeacher:
    """Weights from a file: a state_dict, `{"model": ...}`, or safetensors."""

    source: Literal["checkpoint"]
    arch: str
    path: Text
    sha256: Sha256  # of the file, since DVC does not see it change
    mean: Annotated[tuple[Share, ...], Field(min_length=3, max_length=3)]  # of its input
    std: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=3)]
    min_accuracy: Share


@section
class MdistillerTeacher:
    """One of the teachers that the papers share, from `cifar_teachers.tar`."""

    source: Literal["mdistiller"]
    arch: str
    urls: Urls
    sha256: Sha256 | None  # of the archive
    min_accuracy: Share


@section
class TorchvisionTeacher:
    """One of torchvision's, by its name there, with its weights by their name there."""

    source: Literal["torchvision"]
    arch: str
    weights: Text  # DEFAULT, IMAGENET1K_V1, ...
    min_accuracy: Share


Teacher = TrainedTeacher | CheckpointTeacher | MdistillerTeacher | TorchvisionTeacher


@section
class ClipTowers:
    """Small towers for `open_clip.CLIP`: a modified ResNet and a text transformer."""

    embed_dim: Count
    image_size: Annotated[int, Field(ge=32, multiple_of=32)]  # images are resized to it
    vision_layers: Annotated[tuple[Count, ...], Field(min_length=4, max_length=4)]
    vision_width: Annotated[int, Field(ge=2, multiple_of=2)]
    text_width: Count
    text_layers: Count
    text_heads: Count
    context_length: Annotated[int, Field(ge=4)]


@section
class ClipTraining:
    """How AdamW trains CLIP with the contrastive loss on captioned images."""

    captions: Prompts  # templates, one drawn at random for each image and step
    steps: Count
    batch_size: Annotated[int, Field(ge=2)]
    lr: Positive
    weight_decay: Weight
    seed: Seed


@section
class Prompting:
    """How CLIP's text becomes a classifier."""

    prompts: Literal["imagenet80"] | Prompts  # the mean over these; imagenet80 are open_clip's
    logit_scale: Literal["model"] | Annotated[float, Field(gt=0, le=1000)]  # logits are this times the cosine


@section
class TrainedClip(Prompting):
    source: Literal["train"]
    model: ClipTowers
    training: ClipTraining


@section
class PretrainedClip(Prompting):
    """Any (model, tag) of open_clip."""

    source: Literal["pretrained"]
    model: Text
    tag: Text


@section
class CheckpointClip(Prompting):
    """A local file with weights of one of open_clip's models."""

    source: Literal["checkpoint"]
    model: Text
    tag: Text | None  # which of open_clip's weights these are: says how images are prepared
    path: Text
    sha256: Sha256  # of the file, since DVC does not see it change


Clip = TrainedClip | PretrainedClip | CheckpointClip


@section
class Cache:
    """Which views each teacher's table holds; a teacher that is `online` has none and runs along."""

    teacher: Literal["center", "all", "online"]
    clip: Literal["center", "all"]
    top_k: Count | None  # logits kept a view, beside the mean of what the others have; null: all
    batch_size: Count


@section
class Fusion:
    """z_F = alpha z_T + (1 - alpha) z_C, and lam for features alike."""

    alpha: Share
    lam: Share
    grid: _list_of(Share)  # the alphas that the diagnostics try


@section
class Crd:
    """Contrastive representation distillation."""

    dim: Count
    num_negatives: Count
    negatives: Literal["auto", "per_sample", "shared"]  # auto: shared above 200,000 images
    temperature: Annotated[float, Field(ge=0.02)]  # exp(1/temperature) must fit 32 bits
    momentum: Annotated[float, Field(ge=0, lt=1)]


@section
class BaselineParams:
    variants: _list_of(Baseline)
    temperature: Positive
    ce_weight: Weight
    logit_weight: Weight


@section
class Distill:
    variants: _list_of(Variant)
    seeds: _list_of(Seed)  # one student each, for the baselines too
    temperature: Positive
    ce_weight: Weight
    logit_weight: Weight
    feature_weight: Weight


@section
class CorruptionSets:
    names: _list_of(Corruption)
    severities: _list_of(Annotated[int, Field(ge=1, le=5)])


@section
class GeneratedCorruptions(CorruptionSets):
    source: Literal["generate"]
    seed: Seed


@section
class DownloadedCorruptions(CorruptionSets):
    """The published sets: CIFAR-100-C, CIFAR-10-C."""

    source: Literal["download"]
    urls: Urls


@section
class LocalCorruptions(CorruptionSets):
    """The published sets, as their tar or its folder."""

    source: Literal["path"]
    path: Text


Corruptions = GeneratedCorruptions | DownloadedCorruptions | LocalCorruptions


@section
class Evaluate:
    models: _list_of(Literal["teacher", "clip", "ce", "kd", "L", "F", "LF"])
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
                raise InputError(f"views.resize is {views.resize}: must be at least views.size, {views.size}")
            for name in ("teacher", "clip"):
                if getattr(self.cache, name) == "all":
                    raise InputError(f"cache.{name} is 'all': there is no end of views of resized_crop")
        for name, path in self.shifted.items():
            if isinstance(path, str) != files:
                kind = "a folder" if files else "two .npy files, images and labels"
                raise InputError(f"shifted.{name} is {path!r}: must be {kind} for {self.dataset.name}")


CORRUPTION_SOURCES = {
    "digits": ["generate"],
    "cifar10": ["generate", "download", "path"],
    "cifar100": ["generate", "download", "path"],
    "imagenet": ["generate", "path"],
    "folder": ["generate"],
}


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
    return json.loads(json.dumps(chosen, default=lambda x: asdict(x) if is_dataclass(x) else vars(x)))
