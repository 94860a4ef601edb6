"""The sections of params.yaml about the two teachers: sources, tables, fusion."""

from typing import Annotated, Literal

from pydantic import Field

from richkd.params.kinds import (
    Batch,
    Decay,
    Deviations,
    ImageSide,
    Layers,
    ListOf,
    Means,
    Prompts,
    Rate,
    Seed,
    Sha256,
    Share,
    Text,
    TrainingBatch,
    Urls,
    Width,
    section,
)
from richkd.params.students import Training


@section
class TrainedTeacher(Training):
    source: Literal["train"]
    seed: Seed
    min_accuracy: Share  # on the test images; with less, the teacher stage fails


@section
class CheckpointTeacher:
    """Weights from a file: a state_dict, `{"model": ...}`, or safetensors."""

    source: Literal["checkpoint"]
    arch: str
    path: Text
    sha256: Sha256  # of the file, since DVC does not see it change
    min_accuracy: Share
    # Of the network's input. Without both, timm's configuration of a network of timm says how
    # images are cut and normalised.
    mean: Means | None = None
    std: Deviations | None = None
    img_size: ImageSide | None = None  # as that of a student

    @property
    def as_published(self) -> bool:
        """Whether timm says how images are prepared."""
        return self.mean is None


@section
class MdistillerTeacher:
    """A published CIFAR-100 teacher that many papers use, from `cifar_teachers.tar`."""

    source: Literal["mdistiller"]
    arch: str
    urls: Urls
    sha256: Sha256 | None  # of the archive
    min_accuracy: Share


@section
class TorchvisionTeacher:
    """A classifier of torchvision, with its weights; torchvision has the names of both."""

    source: Literal["torchvision"]
    arch: str
    weights: Text  # DEFAULT, IMAGENET1K_V1, ...
    min_accuracy: Share


ReadyMadeTeacher = CheckpointTeacher | MdistillerTeacher | TorchvisionTeacher
Teacher = TrainedTeacher | ReadyMadeTeacher


@section
class ClipTowers:
    """Small towers for `open_clip.CLIP`: a modified ResNet and a text transformer."""

    embed_dim: Width
    image_size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)]  # images are resized to it
    vision_layers: Annotated[tuple[Layers, ...], Field(min_length=4, max_length=4)]
    vision_width: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    text_width: Width
    text_layers: Layers
    text_heads: Width
    context_length: Annotated[int, Field(ge=4, le=4096)]


@section
class ClipTraining:
    """How AdamW trains CLIP with the contrastive loss on captioned images."""

    captions: Prompts  # templates, one drawn at random for each image and step
    steps: Annotated[int, Field(ge=1, le=10**9)]
    batch_size: TrainingBatch
    lr: Rate
    weight_decay: Decay
    seed: Seed


@section
class Prompting:
    """How CLIP's text becomes a classifier."""

    prompts: Literal["imagenet80"] | Prompts  # averaged; imagenet80: the 80 of open_clip
    # The logits are the cosines times this number; "model" is the number of the CLIP model itself.
    logit_scale: Literal["model"] | Annotated[float, Field(gt=0, le=1000)]


@section
class TrainedClip(Prompting):
    source: Literal["train"]
    model: ClipTowers
    training: ClipTraining


@section
class PretrainedClip(Prompting):
    """A model and its weights, the tag, by their names in open_clip."""

    source: Literal["pretrained"]
    model: Text
    tag: Text


@section
class CheckpointClip(Prompting):
    """Weights of a model of open_clip, in a local file."""

    source: Literal["checkpoint"]
    model: Text
    tag: Text | None  # open_clip's name for these weights: says how images are prepared
    path: Text
    sha256: Sha256  # of the file, since DVC does not see it change


Clip = TrainedClip | PretrainedClip | CheckpointClip


@section
class Cache:
    """Which views the tables of the teachers hold; an `online` teacher runs along instead."""

    teacher: Literal["center", "all", "online"]
    clip: Literal["center", "all"]
    # How many of the largest logits a table keeps for a view, with the mean of the rest; null: all.
    top_k: Annotated[int, Field(ge=1, le=10**6)] | None
    batch_size: Batch


Alignment = Literal["none", "temperature", "standardize"]


@section
class Fusion:
    """Fused logits are alpha z_T + (1 - alpha) z_C; lam mixes the features in the same way.

    Scales and an `auto` alpha are fitted on the validation images.
    """

    align: Alignment  # how both teachers come to one scale
    alpha: Share | Literal["auto"]  # auto: of the lowest NLL at the mixture's best temperature
    lam: Share | Literal["auto"]  # auto: the same as alpha
    per_class: bool  # with alpha auto: an alpha for each class, if better on held-out images
    # What to do where a ready-made teacher may have been trained on the validation images.
    seen_validation: Literal["refuse", "allow"]
    grid: ListOf[Share]  # the alphas that the diagnostics try
