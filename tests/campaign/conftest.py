"""The campaign: programs that try to break the stages, with a fixed seed, some minutes in all.

`pytest tests/campaign --campaign 1` is all of it; without the option, as in `make test-slow`, a
sample is tried.
docs/reliability.md says what is promised, and what was tried.
"""

import math
from collections.abc import Callable

import pytest
from campaign.forked import import_all
from campaign.workspace import Step, run_pipeline

SAMPLE = 0.1  # the share that is tried unless `--campaign` says another


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign", type=float, default=SAMPLE, metavar="TIMES", help="1: the whole campaign"
    )


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How often something is tried: the given number, times what `--campaign` says."""
    # pytest may not know the option unless this folder is named.
    factor = request.config.getoption("campaign", SAMPLE)
    return lambda count: math.ceil(count * factor)


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """The stages of the smoke pipeline, each with the folder before and after it."""
    import_all()
    return run_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def imported() -> None:
    """For programs that need no pipeline."""
    import_all()
