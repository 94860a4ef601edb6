"""The user's files, which a temporary copy of the project does not have."""

from pathlib import Path


def locate(path: Path | str, holds: str = "") -> Path:
    """The place that a path in params.yaml, or in a record, leads to.

    holds: a file that the folder `path` must hold. A folder of that name without it is another one.

    `dvc exp run --temp` and `--queue` run in a copy of the tracked files, `.dvc/tmp/exps/<name>`. A
    relative path to something that the copy does not have leads from the checkout it was made of.
    """
    path = Path(path)
    if path.is_absolute() or (path / holds).exists():
        return path
    for folder in Path.cwd().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2] / path
    return path
