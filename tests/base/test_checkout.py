"""The user's files, found from a copy of the checkout: DVC's temporary folder, git's worktree."""

import subprocess
from pathlib import Path

import pytest

from richkd.base.checkout import locate, places


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
    assert locate(f"../{tmp_path.name}") == tmp_path / f"../{tmp_path.name}"


def test_what_the_copy_has_is_its_own(copy):
    assert locate("tracked") == Path("tracked")


def test_a_folder_of_the_same_name_may_lack_something(copy, tmp_path):
    (tmp_path / "tracked/image.png").touch()
    assert locate("tracked", "image.png") == tmp_path / "tracked"
    (copy / "tracked/image.png").touch()
    assert locate("tracked", "image.png") == Path("tracked")


def test_where_nothing_is_both_places_are_named(copy, tmp_path):
    assert locate("gone") == Path("gone")
    assert places("../gone") == f"{copy.parent}/gone or {tmp_path.parent}/gone"
    assert places("/gone") == "/gone"


def test_other_paths_stay(copy, tmp_path, monkeypatch):
    assert locate("/nowhere/sets") == Path("/nowhere/sets")
    monkeypatch.chdir(tmp_path)
    assert locate("nowhere") == Path("nowhere") and places("nowhere") == "nowhere"


def git(folder, *words):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def worktree(tmp_path):
    """A worktree of a checkout, which has images that git ignores, in the project's folder."""
    main = tmp_path / "main"
    (main / "project").mkdir(parents=True)
    (main / "project/params.yaml").touch()
    git(main, "init", "-q")
    git(main, "add", ".")
    git(main, "commit", "-q", "-m", "x")
    git(main, "worktree", "add", "-q", str(tmp_path / "other"))
    (main / "project/images").mkdir()
    return tmp_path / "other/project"


def test_a_worktree_sees_the_images_of_the_checkout(worktree, tmp_path, monkeypatch):
    images = tmp_path / "main/project/images"
    monkeypatch.chdir(worktree)
    assert locate("images") == images and locate("params.yaml") == Path("params.yaml")
    temporary = worktree / ".dvc/tmp/exps/tmpabc"
    temporary.mkdir(parents=True)
    monkeypatch.chdir(temporary)
    assert locate("images") == images
    assert places("gone") == f"{temporary}/gone or {worktree}/gone or {images.parent}/gone"
    (worktree / "images").mkdir()
    assert locate("images") == worktree / "images"
    monkeypatch.chdir(images.parent)
    assert places("gone") == "gone"
