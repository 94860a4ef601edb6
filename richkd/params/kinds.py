"""The kinds of values in params.yaml, and the decorator that makes a class one of its sections."""

import re
from typing import Annotated, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

Class = TypeVar("Class")
Item = TypeVar("Item")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[Class]) -> type[Class]:
    """Make `cls` a section: a frozen dataclass that checks its values and never converts them."""
    # Built once, with the whole file: a schema of each section alone would make the import slower.
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)
    made = dataclass(cls, frozen=True, kw_only=True, config=config)
    return cast(type[Class], made)


def _distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


def _template(text: str) -> str:
    # No other braces: `{:>9}` would set a width, and `{{` would be written as one brace.
    if text.count("{}") != 1 or re.search("[{}]", text.replace("{}", "").replace("{kind}", "")):
        raise ValueError(
            "must hold {} once, where the class name goes, and no other brace but {kind}, where "
            "the name of its superclass goes"
        )
    return text


def _name(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]*", text):
        raise ValueError("a name is a small letter, then small letters, digits or _")
    return text


# Every number has a bound. The bounds are far beyond what anybody trains, and they exist so that a
# slip of the keyboard is told at once, and not by a full memory or a run without end.
Count = Annotated[int, Field(ge=1, le=10**9)]  # of images
Whole = Annotated[int, Field(ge=0, le=10**9)]  # the same, or none
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Batch = Annotated[int, Field(ge=1, le=10**6)]  # images in a batch
TrainingBatch = Annotated[int, Field(ge=2, le=10**6)]  # BatchNorm and contrasts need two
Width = Annotated[int, Field(ge=1, le=2**16)]  # of a layer, or of a space of features
ImageSide = Annotated[int, Field(ge=16, le=4096)]  # in pixels
Layers = Annotated[int, Field(ge=1, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
# Losses are computed in 32 bits, which end at 3e38: no product of these comes near it.
Rate = Annotated[float, Field(gt=0, le=10**6)]  # of learning
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
Weight = Annotated[float, Field(ge=0, le=10**6)]
Decay = Annotated[float, Field(ge=0, le=1000)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# The normalisation of an image in [0, 1], a number a channel.
Means = Annotated[tuple[Share, ...], Field(min_length=3, max_length=3)]
Deviations = Annotated[
    tuple[Annotated[float, Field(ge=0.001, le=1)], ...], Field(min_length=3, max_length=3)
]
# A list with at least one item and none twice.
ListOf = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(_distinct)]
Urls = ListOf[Annotated[str, Field(pattern="^https?://")]]
Prompts = ListOf[Annotated[str, AfterValidator(_template)]]
