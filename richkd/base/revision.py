"""Which commit of a git repository is checked out, for files that say what they were made from."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The results of an experiment follow from these files.
SOURCES = ("params.yaml", "dvc.yaml", "richkd", "stages")


class Commit(NamedTuple):
    """What is checked out."""

    hash: str  # 40 hex digits
    date: str  # when it was committed: YYYY-MM-DD
    changed: bool  # whether files have changes that are not committed


def commit(paths: Sequence[str], folder: Path | str = ".") -> Commit | None:
    """The commit of `folder`, and whether files below its `paths` have changed since.

    None where git is not there, knows no commit, or tracks nothing of `paths`: then `folder` is no
    checkout, or lies in one of another project.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        if not git("ls-files", "--", *paths) or not (head := git("log", "-1", "--format=%H %cs")):
            return None
        name, day = head.split()
        return Commit(name, day, bool(git("status", "--porcelain", "--", *paths)))
    except OSError:
        return None
