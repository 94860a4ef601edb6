"""One `dvc repro` of the smoke preset, which all tests share; each test that writes has a copy."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from pipeline import clone, command, commit


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A clone after `dvc repro`, with its results in git. Tests only read it.

    The processes of pytest-xdist share it: the first one makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "reproduced"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            clone(folder)
            command(folder, "dvc", "repro")
            commit(folder, "results")
    return folder


@pytest.fixture
def copy(reproduced: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reproduced, tmp_path / "copy", symlinks=True))
