"""params.yaml as plain dicts, lists, texts and numbers, read as DVC reads it.

DVC and this module use the same loader, so both see the same values. What could be read in two
ways, or would cost time or memory without bound, is refused before any value is made.
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    ScalarEvent,
)

from richkd.base.errors import InputError, one_line

MOST_BYTES = 200_000  # of the file; the largest preset has 5,000
DEEPEST = 20  # sections in sections, and lists in lists
LONGEST_VALUE = 1000  # characters
MOST_VALUES = 10_000  # reading so many takes about a second
# Line breaks, other control characters, and halves of characters: no path, name or prompt has them.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_yaml(path: Path | str) -> Any:
    """What the file holds; InputError says in one line what is refused, and where."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{path} has more than {MOST_BYTES:,} bytes, the most allowed")
        text = content.decode()
        _check_events(text, path)
        # YAML 1.2, as DVC writes it: 1e-05 is a number, and no key may stand twice.
        values = _loader().load(text) or {}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not readable as YAML: it is not UTF-8, {error}") from None
    except (YAMLError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # ruamel's error depends on the value: ValueError for a date that no calendar has.
        raise InputError(f"{path} is not readable as YAML: {_reason(error)}") from None
    _check_values(values, path, "")
    return values


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)  # ruamel says where it is, and much else
    text = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else error
    return one_line(text, 200)


def _loader() -> YAML:
    return YAML(typ="safe", pure=True)


def _check_events(text: str, path: Path | str) -> None:
    """Go through the file without making values: no aliases, no tags, not too deep or long."""
    depth = values = 0
    for event in _loader().parse(text):
        values += isinstance(event, CollectionStartEvent | ScalarEvent)
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if wrong := _refusal(event, depth):
            raise InputError(f"{path}: line {event.start_mark.line + 1} has {wrong}")
        if values > MOST_VALUES:
            raise InputError(
                f"{path} has more than {MOST_VALUES:,} keys and values, the most allowed"
            )


def _refusal(event: Event, depth: int) -> str | None:
    """What is wrong with a part of the file, if anything is."""
    if isinstance(event, AliasEvent):
        return (
            f"the alias *{one_line(event.anchor, 80)}: write the value out, since -S for one of "
            "its places would silently change the others"
        )
    if tag := getattr(event, "tag", None):
        return f"the tag {one_line(tag, 80)}: write the value without it"
    if depth > DEEPEST:
        return f"more than {DEEPEST} lists and sections inside one another"
    if isinstance(event, ScalarEvent) and len(event.value) > LONGEST_VALUE:
        return f"a value of {len(event.value):,} characters: at most {LONGEST_VALUE:,}"
    return None


def _check_values(value: Any, path: Path | str, key: str) -> None:
    """Keys are texts, values are plain: YAML has dates, too, and numbers and null as keys."""
    if isinstance(value, dict):
        for name, held in value.items():
            if not isinstance(name, str):
                shown = one_line(repr(name), 80)
                raise InputError(
                    f"{path}: {key or 'the file'} has the key {shown}: must be a text, in quotes"
                )
            _check_values(held, path, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for place, held in enumerate(value):
            _check_values(held, path, f"{key}.{place}")
    elif not isinstance(value, str | bool | int | float | None):
        kind = type(value).__name__
        raise InputError(f"{path}: {key} is {value}, read as a {kind}: write it in quotes")
    elif isinstance(value, str) and UNPRINTABLE.search(value):
        raise InputError(f"{path}: {key} is {one_line(repr(value), 80)}: must be one line of text")
