"""The folder `.resume`: locks of stages, and what the outputs of finished ones can be made from.

A stage is finished before DVC has recorded its outputs in `dvc.lock`. If DVC is killed between, it
runs the stage again. So a finished stage keeps its checkpoints or its table here, and says in a
small JSON file which output they belong to. The next start of any stage removes what is recorded.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from richkd.base.errors import InputError
from richkd.base.files import write_json

FOLDER = Path(".resume")


@contextmanager
def lock(stage: str) -> Iterator[FileLock]:
    """Lock the stage in the block; the lock of a process that dies is free.

    Raises InputError if another process has the lock.
    """
    path = FOLDER / "locks" / f"{stage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise InputError(f"stage {stage}: another run is at it") from None
    try:
        yield held
    finally:
        held.release()


def keep(output: Path | str, sources: Iterable[Path]) -> None:
    """Note that the folder `output` is finished and can be written again from `sources`.

    `sources` are files and folders of FOLDER; those that do not exist are left out.
    """
    files = sorted(path for path in Path(output).rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip((str(path.relative_to(output)) for path in files), pool.map(_md5, files)))
    existing = [path.name for path in sources if path.exists()]
    if existing:
        write_json(_note(output), {"files": hashes, "sources": existing})


def forget(output: Path | str) -> None:
    """Take back `keep`: the output is being made. The sources stay."""
    _note(output).unlink(missing_ok=True)


def remove_recorded(lock_file: Path) -> None:
    """Remove the sources of every output that `dvc.lock` has recorded since it was finished."""
    if not lock_file.exists():
        return
    text, written = lock_file.read_text(), lock_file.stat().st_mtime_ns
    for note in FOLDER.glob("finished-*.json"):
        # Another stage that starts at the same time may remove what is found here.
        with suppress(FileNotFoundError):
            _remove_if_recorded(note, text, written)


def _remove_if_recorded(note: Path, lock_text: str, written: int) -> None:
    """`written` is when DVC wrote its lock file, which has this text; in nanoseconds."""
    try:
        record = json.loads(note.read_text())
        recorded = f"md5: {_dvc_hash(record['files'])}\n" in lock_text
        sources = [FOLDER / Path(name).name for name in record["sources"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        note.unlink()  # damaged; without it the sources stay until their stage runs again
        return
    # A lock file from git may have had the same hash before the stage ran.
    if recorded and written > note.stat().st_mtime_ns:
        for source in sources:
            shutil.rmtree(source) if source.is_dir() else source.unlink(missing_ok=True)
        note.unlink()


def _note(output: Path | str) -> Path:
    return FOLDER / f"finished-{'-'.join(Path(output).parts)}.json"


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _dvc_hash(files: dict[str, str]) -> str:
    """What DVC writes into `dvc.lock` for a folder of these files: {path in the folder: md5}."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
