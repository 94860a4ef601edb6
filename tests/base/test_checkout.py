"""Files of the user's, seen from a temporary copy of DVC's."""

from pathlib import Path

import pytest

from richkd.base.checkout import locate


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The working folder is a copy of a checkout, which has the folders `sets` and `tracked`."""
    folder = tmp_path / ".dvc/tmp/exps/tmpabc"
    (folder / "tracked").mkdir(parents=True)
    for name in ("sets", "tracked"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_what_the_copy_lacks_is_in_the_checkout(copy, tmp_path):
    assert locate("sets") == tmp_path / "sets"
    assert locate("../x") == tmp_path / "../x"


def test_what_the_copy_has_is_its_own(copy):
    assert locate("tracked") == Path("tracked")


def test_a_folder_of_the_same_name_may_lack_something(copy, tmp_path):
    assert locate("tracked", "image.png") == tmp_path / "tracked"
    (copy / "tracked/image.png").touch()
    assert locate("tracked", "image.png") == Path("tracked")


def test_other_paths_stay(copy, tmp_path, monkeypatch):
    assert locate("/nowhere/sets") == Path("/nowhere/sets")
    monkeypatch.chdir(tmp_path)
    assert locate("nowhere") == Path("nowhere")
