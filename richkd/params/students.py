"""The sections of params.yaml about students: how SGD trains them, and by which losses.

A new loss needs one more subclass of `Term` here: `Variant` has a field for every subclass.
"""

import re
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field

from richkd.params.kinds import (
    Decay,
    Epochs,
    ImageSide,
    ListOf,
    Rate,
    Seed,
    Share,
    Temperature,
    TrainingBatch,
    Weight,
    Width,
    section,
)

Class = TypeVar("Class")


@section
class Training:
    """A classifier and how SGD trains it."""

    arch: str
    epochs: Epochs
    batch_size: TrainingBatch
    lr: Rate
    schedule: Literal["step", "onecycle"]
    milestones: tuple[Epochs, ...]  # epochs at which `step` multiplies the rate by 0.1
    momentum: Share
    weight_decay: Decay
    # The side of the images for which a network of timm is made; None: timm's own.
    img_size: ImageSide | None = None


@section
class Term:
    """One loss in the weighted sum that a student minimises.

    A subclass has the options of one loss. Its name in lower case is the name of the loss, in
    params.yaml and in `richkd.losses`, where the paper stands.
    """

    weight: Weight
    # Epochs in which the weight rises linearly from 0; 0: full from the start.
    warm_up: Annotated[int, Field(ge=0, le=10**6)] = 0

    # Whether the loss compares feature maps, which only a conventional teacher that runs along has.
    needs_maps: ClassVar[bool] = False
    # Whether the loss compares logits, which are all that a control changes.
    compares_logits: ClassVar[bool] = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the loss function: all fields but the weight and the warm-up."""
        return {name: getattr(self, name) for name in _names(self) if name not in _names(Term)}


def _names(of: Any) -> list[str]:
    return [field.name for field in fields(of)]


@section
class Ce(Term):
    """Cross entropy with the labels."""

    weight: Weight = 1.0


@section
class Kd(Term):
    """Hinton's knowledge distillation."""

    temperature: Temperature
    standardize: bool = False  # scale each row of logits to mean 0 and deviation 1 first
    compares_logits = True


@section
class Dkd(Term):
    """Decoupled knowledge distillation: alpha on the labelled class, beta on the other classes."""

    alpha: Weight
    beta: Weight
    temperature: Temperature
    compares_logits = True


@section
class Mlkd(Term):
    """Multi-level logit distillation: images, batch and classes, at several temperatures."""

    temperatures: ListOf[Temperature]
    compares_logits = True


@section
class Dist(Term):
    """DIST: correlations, beta over the classes of an image, gamma over the images of a batch."""

    beta: Weight
    gamma: Weight
    temperature: Temperature
    compares_logits = True


@section
class Rkd(Term):
    """Relational knowledge distillation: distances and angles between the images of a batch."""

    distance_weight: Weight
    angle_weight: Weight


@section
class Sp(Term):
    """Similarity-preserving distillation: inner products between the images of a batch."""


@section
class Pkt(Term):
    """Probabilistic knowledge transfer: similarities in a batch, read as probabilities."""


@section
class Crd(Term):
    """Contrastive representation distillation."""

    dim: Width  # of the space in which features are compared
    # Images of other classes that each image is compared with.
    num_negatives: Annotated[int, Field(ge=1, le=10**6)]
    negatives: Literal["auto", "all", "per_sample", "shared"]  # auto: shared above 200,000 images
    temperature: Annotated[float, Field(ge=0.02, le=1000)]  # exp(1/temperature) must fit 32 bits
    momentum: Annotated[float, Field(ge=0, lt=1)]  # share of its old value that a memory keeps


@section
class At(Term):
    """Attention transfer: where the feature maps are large, by the mean of their p-th powers."""

    p: Annotated[float, Field(gt=0, le=10)]
    needs_maps = True


@section
class Nst(Term):
    """Neuron selectivity transfer: the distributions of the channels of the feature maps."""

    needs_maps = True


# How CLIP's logits are changed before they are fused. `cosines`: the cosines alone, as with
# clip.logit_scale 1. `shuffled`: the logits of all classes but the labelled one change places.
Control = Literal["cosines", "shuffled"]


def _variant_name(text: str) -> str:
    # A variant's name is the name of a folder, and some file systems ignore the case.
    taken = ("teacher", "clip", "fused", "ce")
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", text) or text.lower() in taken:
        raise ValueError(
            "a name is a letter, then letters, digits or _; teacher, clip, fused and ce are taken"
        )
    return text


VariantName = Annotated[str, AfterValidator(_variant_name)]


def _with_every_term(cls: type[Class]) -> type[Class]:
    """`cls`, a section, with one field more for each loss but ce; None where it is left out."""
    kinds = {kind.__name__.lower(): kind for kind in Term.__subclasses__() if kind is not Ce}
    hints = {name: kind | None for name, kind in kinds.items()}
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__annotations__": hints}
    return section(type(cls.__name__, (cls,), names | dict.fromkeys(kinds)))


@_with_every_term
@section
class Variant:
    """The teacher of some students, and the losses that they minimise."""

    teacher: Literal["teacher", "clip", "fused"]
    ce: Ce = Ce()
    control: Control | None = None

    @property
    def terms(self) -> dict[str, Term]:
        """The terms of the loss by name: ce first, the others in the order of this file."""
        values = {name: getattr(self, name) for name in _names(self)}
        return {name: value for name, value in values.items() if isinstance(value, Term)}


@section
class Distill:
    """Which students are trained: one for each seed under each variant, and without a teacher."""

    seeds: ListOf[Seed]
    variants: dict[VariantName, Variant]
