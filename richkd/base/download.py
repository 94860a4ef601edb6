"""Files from the web, kept in the user's cache folder, and tar archives nobody vouches for."""

import gzip
import hashlib
import lzma
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import platformdirs
import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from richkd.base.errors import InputError

CHECKSUM = r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}"
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds
WAITS = (0.0, 1.0, 2.0, 4.0)  # seconds before each try of a URL
PIECE = 2**16  # bytes; the most that a killed download loses
# What reading a damaged tar can raise.
BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def fetch(urls: Sequence[str], name: str, checksum: str | None, instead: str) -> Path:
    """The file `name` in the cache folder, downloaded where it is not there with this checksum.

    urls: tried in turn. What a cut or killed download has left is continued.
    checksum: as CHECKSUM says; without one, whatever comes whole is taken.
    instead: what the user can do, as the end of the error's line.
    Raises InputError with each URL's reason where none gives the file, or there is no space for it.
    """
    path = platformdirs.user_cache_path("richkd") / name
    part = path.with_name(f"{path.name}.part")
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # whoever comes second finds the file
            if path.exists() and (checksum is None or _checksum(path, checksum) == checksum):
                return path
            for url in urls:
                if checksum is None:  # nothing could tell that the rest belongs to this part
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
    """InputError, naming both checksums, where `what` (a param, say) is not the file it must be."""
    try:
        found = _checksum(path, checksum)
    except OSError as error:
        raise InputError(f"{what}: {path} could not be read: {error.strerror}") from None
    if found != checksum:
        raise InputError(f"{what}: {path} has {found}, must have {checksum}")


@contextmanager
def members(path: Path | str) -> Iterator[dict[str, Callable[[], bytes]]]:
    """The files in a tar, compressed or not: by name, what reads each into memory.

    Raises InputError for a member that would lead out of a folder it were unpacked in, for a
    device, and, also while members are read, where the archive is not whole.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}") from None
    try:
        with file, tarfile.open(fileobj=file) as tar:
            listed = tar.getmembers()
            for member in listed:
                _refuse_unsafe(member, path)
            while tar.fileobj.read(PIECE):  # up to gzip's checksum at the end
                pass
            yield {x.name: partial(_content, tar, x) for x in listed if x.isreg()}
    except BROKEN:
        raise InputError(f"{path} is not whole, or not a tar archive") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return tar.extractfile(member).read()


def _refuse_unsafe(member: tarfile.TarInfo, path: Path | str) -> None:
    try:
        # The path of the archive, as a folder: nothing lies below a file that a link could lead to.
        tarfile.data_filter(member, str(path))
        if member.name.startswith("/"):  # the filter strips it
            raise tarfile.AbsolutePathError(member)
    except tarfile.SpecialFileError:
        raise InputError(f"{path}: refused, member {member.name!r} is a device") from None
    except tarfile.FilterError:
        text = f"{path}: refused, member {member.name!r} would leave the folder"
        raise InputError(text) from None


def _checksum(path: Path | str, like: str) -> str:
    """With the algorithm of the checksum `like`."""
    algorithm = like.partition(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _download(url: str, part: Path, checksum: str | None) -> str | None:
    """Make `part` the whole file; returns why that failed. A part with wrong bytes is deleted."""
    begun = _size(part) > 0
    if reason := _complete(url, part):
        return reason
    if checksum is None or (found := _checksum(part, checksum)) == checksum:
        return None
    part.unlink()
    # It may be the earlier part that was wrong.
    return _download(url, part, checksum) if begun else f"has {found}, not {checksum}"


def _complete(url: str, part: Path) -> str | None:
    """Continue `part` until it is as long as the file at `url`; returns why that failed."""
    for wait in WAITS:
        time.sleep(wait)
        size = _size(part)
        # As it is: a .tar.gz that a server declares to be a compressed .tar stays one.
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
                    total = range_.partition("/")[2] or response.headers.get("Content-Length")
                    total = int(total) if total else None
                    _save(response, part, size if status == 206 else 0, total)
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


def _save(response: requests.Response, part: Path, start: int, total: int | None) -> None:
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
    """What the network said, without the names of the layers above it."""
    while error.__context__:
        error = error.__context__
    return str(error)
