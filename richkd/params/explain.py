"""What is wrong in params.yaml, in one line for the person who wrote it."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic_core import ErrorDetails

from richkd.base.errors import one_line


def explain(errors: Sequence[ErrorDetails], whole: type) -> str:
    """One line about one wrong key of params.yaml: its value, and what is allowed.

    `errors` are pydantic's; `whole` is the dataclass whose fields are the sections.
    """
    error = _most_telling(errors, whole)
    keys = _keys(error, whole)
    key = one_line(".".join(_shown(part) for part in keys), 120)
    if error["type"] == "unexpected_keyword_argument":
        allowed = [field.name for field in fields(_follow(error["loc"][:-1], whole)[1])]
        close = get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{key} is not a parameter: {hint}allowed are {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.{_discriminator(error)} is missing"
    if error["type"] == "union_tag_invalid":
        tag, allowed_tags = repr(error["ctx"]["tag"]), error["ctx"]["expected_tags"]
        where = f"{key}.{_discriminator(error)}"
        return f"{where} is {one_line(tag, 80)}: must be one of {allowed_tags}"
    value = one_line(repr(error["input"]), 80)
    if not key:  # a check across sections names its keys itself
        return _message(error)
    if error["loc"][-1] == "[key]":  # what pydantic says of a name in a section of named values
        return f"{key} has the name {value}: {_message(error)}"
    same = [_message(other) for other in errors if _keys(other, whole) == keys]
    return f"{key} is {value}: {' or '.join(same)}"


def _shown(part: str) -> str:
    """A key as it is, or with its control characters escaped; the middle of a long one left out."""
    return one_line(part if part.isprintable() else repr(part), 60)


def _most_telling(errors: Sequence[ErrorDetails], whole: type) -> ErrorDetails:
    # A misspelt key has two errors: its own, and one for the key that is missing.
    unknown = (error for error in errors if error["type"] == "unexpected_keyword_argument")
    first = next(unknown, errors[0])
    # A value of one kind or another has an error for each kind. The deepest knows the value best.
    keys = _keys(first, whole)
    below = [error for error in errors if _keys(error, whole)[: len(keys)] == keys]
    return max([first, *below], key=lambda error: len(_keys(error, whole)))


def _message(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return error["msg"].removeprefix("Input ").removeprefix("Tuple ")


def _discriminator(error: ErrorDetails) -> str:
    """The key whose value says which kind of section this is."""
    return str(error["ctx"]["discriminator"]).strip("'")


def _keys(error: ErrorDetails, whole: type) -> list[str]:
    """The keys of params.yaml down to the wrong one."""
    location = error["loc"]
    if error["type"] != "unexpected_keyword_argument" and location[-1:] == ("[key]",):
        location = location[:-2]  # the name that is wrong is not yet a key
    return _follow(location, whole)[0]


def _follow(location: Sequence[int | str], whole: type) -> tuple[list[str], Any]:
    """The keys in pydantic's `location`, and the type of what the last of them holds.

    Between the keys, pydantic has names of its own for the kinds of value that a key takes.
    """
    keys: list[str] = []
    hint: Any = whole
    for part in location:
        kind = _without_none(hint)
        if is_dataclass(kind):
            keys.append(str(part))
            hint = get_type_hints(kind, include_extras=True).get(str(part))
        elif get_origin(kind) is dict:
            keys.append(str(part))
            hint = get_args(kind)[1]
        elif isinstance(part, int):  # a place in a list
            keys.append(str(part))
        elif tag := getattr(getattr(hint, "__metadata__", [None])[0], "discriminator", None):
            hint = next(
                option
                for option in get_args(kind)
                if part in get_args(get_type_hints(option).get(tag))
            )
    return keys, _without_none(hint)


def _without_none(hint: Any) -> Any:
    """`hint` without its checks, and without the None that is allowed beside one other type."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        if len(options) == 1:
            return _without_none(options[0])
    return hint
