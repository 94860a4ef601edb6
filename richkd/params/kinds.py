"""Kinds of values, which the sections of params.yaml share."""

from functools import partial
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

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


def list_of(item: Any) -> Any:
    """A list with at least one item and none twice."""
    return Annotated[tuple[item, ...], Field(min_length=1), AfterValidator(_distinct)]


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Urls = list_of(Annotated[str, Field(pattern="^https?://")])
Prompts = list_of(Annotated[str, AfterValidator(_template)])
