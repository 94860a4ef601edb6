"""Downloads, kept in the user's cache folder; tar archives, read without trust."""

import bz2
import gzip
import hashlib
import lzma
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import platformdirs
import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from richkd.base.checkout import places
from richkd.base.errors import InputError

CHECKSUM = r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}"
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds
WAITS = (0.0, 1.0, 2.0, 4.0)  # seconds before each try of a URL
PIECE = 2**16  # bytes read at once; a killed download loses at most so many
# Bounds of a tar archive, in bytes: several times what the published ones have.
HEADERS, MEMBER, TOTAL = 2**22, 5 * 10**8, 5 * 10**9
OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def fetch(urls: Sequence[str], name: str, checksum: str | None, instead: str) -> Path:
    """The path of the file `name` in the cache folder; downloaded first if it is not there.

    urls: tried one after another. An interrupted download is continued.
    checksum: as CHECKSUM says. A file with another checksum is downloaded again; without a
        checksum any whole file is accepted.
    instead: what the user can do instead; the end of the error's line.

    Raises InputError if no URL gives the file, with a reason for each URL; or if the file cannot be
    written.
    """
    path = platformdirs.user_cache_path("richkd") / name
    part = path.with_name(f"{path.name}.part")
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # a second process waits, then finds the file
            if path.exists() and (checksum is None or _checksum(path, checksum) == checksum):
                return path
            for url in urls:
                if checksum is None:  # nothing could tell whether both parts are of one file
                    part.unlink(missing_ok=True)
                if (reason := _download(url, part, checksum)) is None:
                    part.replace(path)
                    tqdm.write(f"{path}: {path.stat().st_size} bytes from {url}")
                    return path
                reasons.append(f"{url} ({reason})")
    except OSError as error:
        raise InputError(f"{path} could not be written: {error}") from error
    raise InputError(
        f"{name} could not be downloaded: {', '.join(reasons) or 'no URL is given'}; {instead}"
    )


def verify(path: Path | str, checksum: str, what: str) -> None:
    """Raise InputError, with both checksums, if the file has another checksum.

    what: a name for the file, for example that of a parameter.
    """
    try:
        found = _checksum(path, checksum)
    except OSError as error:
        raise InputError(f"{what}: {places(path)} could not be read: {error.strerror}") from None
    if found != checksum:
        raise InputError(f"{what}: {path} has {found}, must have {checksum}")


class _Refused(Exception):
    """An archive goes beyond a bound; the message says which."""


class _Headers:
    """A file for `tarfile` to read headers from: HEADERS bytes, whatever a header declares."""

    def __init__(self, file: IO[bytes]):
        self.file, self.left = file, HEADERS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise _Refused(f"its headers have more than {HEADERS:,} bytes")
        return self.file.read(size)


@contextmanager
def members(path: Path | str) -> Iterator[dict[str, Callable[[], bytes]]]:
    """The files in a tar, compressed or not: {name: a function that reads the content}.

    Raises InputError for a member that, unpacked, would lie outside the folder; for a device; for
    an archive beyond the bounds; and for a damaged archive, also while members are read.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}") from None
    with file:
        with _refusing(path):
            start = file.read(5)
            file.seek(0)
            opener = next((OPENERS[x] for x in OPENERS if start.startswith(x)), None)
            unpacked = cast(IO[bytes], opener(file) if opener else file)
            listed = _list(unpacked, path)
        yield {x.name: partial(_content, unpacked, x, path) for x in listed}


def _list(file: IO[bytes], path: Path | str) -> list[tarfile.TarInfo]:
    """The archive's files, all of which are checked; the whole archive has been read then."""
    listed, total = [], 0
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
        for member in tar:  # of each, the header is read and not yet the content
            name = repr(member.name[:100])
            _refuse_unsafe(member, path)
            total += member.size
            if member.issparse():
                raise _Refused(f"member {name} is sparse")
            if not 0 <= member.size <= MEMBER:
                raise _Refused(f"member {name} must have 0 to {MEMBER:,} bytes")
            if total > TOTAL:
                raise _Refused(f"its members have more than {TOTAL:,} bytes")
            if member.isreg():
                listed.append(member)
        # The rest, up to gzip's checksum at the end.
        while piece := file.read(PIECE):
            total += len(piece)
            if total > TOTAL:
                raise _Refused(f"it has more than {TOTAL:,} bytes")
    return listed


def _content(file: IO[bytes], member: tarfile.TarInfo, path: Path | str) -> bytes:
    with _refusing(path):
        file.seek(member.offset_data)
        content = file.read(member.size)
        if len(content) < member.size:
            raise EOFError
        return content


@contextmanager
def _refusing(path: Path | str) -> Iterator[None]:
    """Whatever reading the archive raises becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except _Refused as error:
        raise InputError(f"{path}: refused, {error}") from None
    except RecursionError:  # tarfile calls itself for each further header of a member
        raise InputError(f"{path}: refused, a member has too many headers") from None
    except MemoryError:
        raise InputError(f"{path} needs more memory than there is") from None
    except Exception:  # which one depends on where the archive is damaged
        raise InputError(f"{path} is damaged, or not a tar archive") from None


def _refuse_unsafe(member: tarfile.TarInfo, path: Path | str) -> None:
    name = repr(member.name[:100])
    if "\0" in member.name + member.linkname:
        raise InputError(f"{path}: refused, member {name} has a NUL in its name")
    try:
        # The filter follows links that lie in the given folder. The archive itself is the folder
        # here: a file holds no links.
        tarfile.data_filter(member, str(path))
        if member.name.startswith("/"):  # the filter would only strip the slash
            raise tarfile.AbsolutePathError(member)
    except tarfile.SpecialFileError:
        raise InputError(f"{path}: refused, member {name} is a device") from None
    except tarfile.FilterError:
        text = f"{path}: refused, member {name} would leave the folder"
        raise InputError(text) from None


def _checksum(path: Path | str, like: str) -> str:
    """The file's checksum, by the algorithm of the checksum `like`."""
    algorithm = like.partition(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _download(url: str, part: Path, checksum: str | None) -> str | None:
    """Download the whole file to `part`; returns the reason if that fails.

    A file with a wrong checksum is deleted.
    """
    begun = _size(part) > 0
    if reason := _complete(url, part):
        return reason
    if checksum is None or (found := _checksum(part, checksum)) == checksum:
        return None
    part.unlink()
    # The wrong bytes may be those of an earlier download: try once from the beginning.
    return _download(url, part, checksum) if begun else f"has {found}, not {checksum}"


def _complete(url: str, part: Path) -> str | None:
    """Continue `part` until it is as long as the file at `url`; returns the reason of a failure."""
    for wait in WAITS:
        time.sleep(wait)
        size = _size(part)
        # identity: the bytes as they are. Otherwise a .tar.gz might arrive as a .tar.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        try:
            with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
                status, range_ = response.status_code, response.headers.get("Content-Range", "")
                if status == 416 and range_ == f"bytes */{size}":
                    return None
                if status == 416 or status == 206 and not re.match(rf"bytes {size}-\d+/\d", range_):
                    part.unlink(missing_ok=True)
                    reason = "sends another part than asked for"
                elif status in (200, 206):
                    length = range_.partition("/")[2] or response.headers.get("Content-Length")
                    total = int(length) if length else None
                    _append(response, part, size if status == 206 else 0, total)
                    if total in (None, _size(part)):
                        return None
                    reason = f"sent {_size(part)} of {total} bytes"
                elif status >= 500:
                    reason = f"{status} {response.reason}"
                else:
                    return f"{status} {response.reason}"
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            reason = _root(error)
        except requests.RequestException as error:  # a malformed URL, endless redirects
            return str(error)
    return reason


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _append(response: requests.Response, part: Path, start: int, total: int | None) -> None:
    """Write the response to `part` after its first `start` bytes, with a progress bar."""
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(
            desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024
        ) as bar,
    ):
        for piece in response.raw.stream(PIECE, decode_content=False):
            file.write(piece)
            bar.update(len(piece))


def _root(error: BaseException) -> str:
    """The message of the first error, without those of the layers above it."""
    while error.__context__:
        error = error.__context__
    return str(error)
