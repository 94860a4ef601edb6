"""One script a stage, in pipeline order; each reads its params, calls richkd, writes its outputs."""

import sys
from collections.abc import Callable

from richkd.errors import InputError


def run(main: Callable[..., None], *choices: str) -> None:
    """Run a stage, with the one of `choices` that the command line names if there are any.

    Bad input is one line and exit code 1.
    """
    words = sys.argv[1:]
    try:
        if len(words) != bool(choices) or not set(words) <= set(choices):
            allowed = f"name one of {', '.join(choices)}" if choices else "takes no word"
            raise InputError(f"called with {' '.join(words) or 'nothing'}: {allowed}")
        main(*words)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
