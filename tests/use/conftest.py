"""A finished run, and its student as an ONNX file."""

import pytest
from finished import request, save_run

from richkd.use.export import export


@pytest.fixture(scope="session")
def finished(tmp_path_factory, split):
    """A run that tests only read."""
    root = tmp_path_factory.mktemp("finished")
    save_run(root, split)
    return root


@pytest.fixture
def run(finished, here):
    """The same in the working folder, to be written to."""
    for path in finished.rglob("*"):
        if path.is_file():
            target = here / path.relative_to(finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return here


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """The run's student as ONNX."""
    output = tmp_path_factory.mktemp("exported") / "LF.onnx"
    return export(request(finished, output=output))
