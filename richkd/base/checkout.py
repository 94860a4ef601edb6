"""The user's files, which a copy of the checkout does not have.

`dvc exp run --temp` and `--queue` run in a copy of the tracked files, `.dvc/tmp/exps/<name>`, which
is a git repository of its own. A worktree of git is another such copy. Neither has the files that
git ignores, such as images, nor what lies beside the checkout.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def locate(path: Path | str, holds: str = "") -> Path:
    """The place that a path in params.yaml, or in a record, leads to.

    holds: a file that the folder `path` must hold. A folder of that name without it is another one.

    A relative path leads from the working folder. If that is a copy and has nothing there, the path
    leads from the checkout that was copied. If nothing is in either place, the path is returned as
    it is, and `places` names both.
    """
    return next((x for x in _candidates(path) if (x / holds).exists()), Path(path))


def places(path: Path | str) -> str:
    """Where `locate` looks for the path, for an error or a message: "images", or both places."""
    paths = list(_candidates(path))
    return " or ".join(map(os.path.abspath, paths)) if len(paths) > 1 else str(path)


def _candidates(path: Path | str) -> Iterator[Path]:
    yield Path(path)
    if not Path(path).is_absolute():
        for checkout in _copied_from(Path.cwd()):
            yield checkout / path


def _copied_from(folder: Path) -> Iterator[Path]:
    """The place of `folder` in the checkout that was copied; of a copy of a copy both places."""
    for parent in folder.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            folder = parent.parents[2]
            yield folder
            break
    asked = ["git", "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-toplevel"]
    try:
        found = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no repository
        return
    common, top = map(Path, found.stdout.splitlines())
    if common.name == ".git" and common.parent != top:
        yield common.parent / folder.relative_to(top)
