"""The kinds of values in params.yaml, and the decorator that makes a class one of its sections."""

import re
from string import Formatter
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
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError:  # a lone brace
        fields = []
    if fields != [""]:
        raise ValueError("must hold {} once, where the class name goes")
    return text


def _name(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]*", text):
        raise ValueError("a name is a small letter, then small letters, digits or _")
    return text


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# A list with at least one item and none twice.
ListOf = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(_distinct)]
Urls = ListOf[Annotated[str, Field(pattern="^https?://")]]
Prompts = ListOf[Annotated[str, AfterValidator(_template)]]
