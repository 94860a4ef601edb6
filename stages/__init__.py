"""One script a stage, in pipeline order; each reads its params, calls richkd, writes its outputs."""

import sys
from collections.abc import Callable

from richkd.errors import InputError


def run(main: Callable[..., None]) -> None:
    """Run a stage with the words of the command line; bad input is one line and exit code 1."""
    try:
        main(*sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
