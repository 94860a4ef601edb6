"""The sections of params.yaml about training: how SGD trains, and by which losses."""

from typing import Annotated, Literal

from pydantic import Field

from richkd.params.kinds import Count, Positive, Seed, Share, Weight, list_of, section


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


Baseline = Literal["ce", "kd"]
Variant = Literal["L", "F", "LF"]


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
    variants: list_of(Baseline)
    temperature: Positive
    ce_weight: Weight
    logit_weight: Weight


@section
class Distill:
    variants: list_of(Variant)
    seeds: list_of(Seed)  # one student each, for the baselines too
    temperature: Positive
    ce_weight: Weight
    logit_weight: Weight
    feature_weight: Weight
