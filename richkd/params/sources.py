"""The sections of params.yaml about teachers: where both come from, their tables, their fusion."""

from typing import Annotated, Literal

from pydantic import Field

from richkd.params.kinds import (
    Count,
    Positive,
    Prompts,
    Seed,
    Sha256,
    Share,
    Text,
    Urls,
    Weight,
    list_of,
    section,
)
from richkd.params.students import Training


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
    logit_scale: (
        Literal["model"] | Annotated[float, Field(gt=0, le=1000)]
    )  # logits are this times the cosine


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
    grid: list_of(Share)  # the alphas that the diagnostics try
