"""The commit of a folder."""

import subprocess

import pytest

from richkd.base.revision import commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit of `params.yaml` and `metrics.json`."""
    for name in ("params.yaml", "metrics.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_commit_has_its_hash_and_date(checkout):
    found = commit(["params.yaml"])
    assert found is not None and len(found.hash) == 40
    assert found[1:] == ("2026-01-02", False)


def test_changes_of_the_paths_alone_count(checkout):
    (checkout / "metrics.json").write_text("[]")
    assert not commit(["params.yaml"]).changed
    (checkout / "params.yaml").write_text("[]")
    assert commit(["params.yaml"]).changed


@pytest.mark.parametrize("why", ["no repository", "of another project", "no commit", "no git"])
def test_without_a_commit_of_the_project_there_is_none(
    why, checkout, tmp_path_factory, monkeypatch
):
    folder = checkout
    if why == "of another project":
        folder = checkout / "unpacked"
        folder.mkdir()
        (folder / "params.yaml").touch()
    elif why == "no git":
        monkeypatch.setenv("PATH", "")
    else:
        folder = tmp_path_factory.mktemp("plain")
    if why == "no commit":
        (folder / "params.yaml").touch()
        subprocess.run(["git", "init", "-q", folder], check=True)
        subprocess.run(["git", "-C", folder, "add", "-A"], check=True)
    assert commit(["params.yaml"], folder) is None
