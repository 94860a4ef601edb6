"""What is wrong in `params.yaml`, in words of its reader."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

Kinds = dict[str, dict[str, type]]


def explain(errors: list[dict[str, Any]], whole: type) -> str:
    """One line of pydantic's errors, of the first wrong key: its value and what is allowed.

    `whole` is the dataclass whose fields are the sections.
    """
    kinds = _kinds(whole)
    # A misspelt key is missing, too: its own spelling says more.
    unknown = (error for error in errors if error["type"] == "unexpected_keyword_argument")
    error = next(unknown, errors[0])
    # A key that takes either of two kinds has an error for each: the deepest knows the value best.
    for other in errors:
        if _location(other, kinds)[: len(_location(error, kinds))] == _location(error, kinds):
            error = max(error, other, key=lambda e: len(_location(e, kinds)))
    location = _location(error, kinds)
    key = ".".join(location)
    if error["type"] == "unexpected_keyword_argument":
        allowed = _keys_beside(error, whole, kinds)
        close = get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{key} is not a parameter: {hint}allowed are {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"].startswith("union_tag"):  # which kind of section it is, is itself wrong
        tag = error["ctx"]["discriminator"].strip("'")
        if error["type"] == "union_tag_not_found":
            return f"{key}.{tag} is missing"
        return f"{key}.{tag} is {error['ctx']['tag']!r}: must be one of {error['ctx']['expected_tags']}"
    if not key:  # a check across sections names its keys itself
        return str(error.get("ctx", {}).get("error", error["msg"]))
    same = [_message(other) for other in errors if _location(other, kinds) == location]
    return f"{key} is {error['input']!r}: {' or '.join(same)}"


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return error["msg"].removeprefix("Input ").removeprefix("Tuple ")


def _location(error: dict[str, Any], kinds: Kinds) -> list[str]:
    """The keys down to the value, without pydantic's names for the branches of a union."""
    parts = [str(part) for part in error["loc"]]
    if len(parts) > 1 and parts[0] in kinds:
        del parts[1]  # the kind of section
    kept = [part for part in parts if part.isidentifier() or part.isdigit()]
    if error["type"] == "unexpected_keyword_argument" and kept[-1:] != parts[-1:]:
        kept.append(parts[-1])  # a wrong key may look like anything
    return kept


def _keys_beside(error: dict[str, Any], whole: type, kinds: Kinds) -> list[str]:
    """The keys allowed where a wrong one stands."""
    kind: Any = whole
    if len(error["loc"]) > 1 and error["loc"][0] in kinds:
        kind = kinds[error["loc"][0]][error["loc"][1]]
        path = error["loc"][2:-1]
    else:
        path = error["loc"][:-1]
    for part in path:
        kind = get_type_hints(kind)[part]
    return [field.name for field in fields(kind)]


def _kinds(whole: type) -> Kinds:
    """The sections that come in several kinds, by the word that tells these apart."""
    kinds = {}
    for name, hint in get_type_hints(whole, include_extras=True).items():
        if tag := getattr(getattr(hint, "__metadata__", [None])[0], "discriminator", None):
            of = {}
            for kind in get_args(get_args(hint)[0]):
                of |= dict.fromkeys(get_args(get_type_hints(kind)[tag]), kind)
            kinds[name] = of
    return kinds
