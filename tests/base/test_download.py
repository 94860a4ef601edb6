"""Downloads arrive whole or say why not, whatever the server does; unsafe tars are refused."""

import gzip
import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from serving import Answer, Request

from richkd.base import download
from richkd.base.download import fetch, members, verify
from richkd.base.errors import InputError

BODY = np.random.default_rng(0).bytes(300_000)
WRONG = BODY[:-1] + bytes([BODY[-1] ^ 1])
CHECKSUM = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
WRONG_CHECKSUM = f"sha256:{hashlib.sha256(WRONG).hexdigest()}"
CUT = 200_000
GOOD = Answer(body=BODY)
NOT_FOUND = Answer(status=404)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder; timeouts and waits are short."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(download, "WAITS", (0.0,) * 4)
    return tmp_path / "richkd"


def get(*urls, checksum=CHECKSUM):
    return fetch(urls, "x.tar.gz", checksum, "set dataset.archive to a local copy")


def refusal(*urls, checksum=CHECKSUM):
    with pytest.raises(InputError) as caught:
        get(*urls, checksum=checksum)
    text = str(caught.value)
    assert "\n" not in text
    return text


def left_in(cache):
    """The names of the files in the cache folder, without the lock."""
    return {path.name for path in cache.iterdir()} - {"x.tar.gz.lock"}


def ranges(server):
    return [request.range for request in server.requests]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_downloaded_once(server, cache, capfd, algorithm):
    url = server.url("/a", GOOD)
    checksum = f"{algorithm}:{hashlib.new(algorithm, BODY).hexdigest()}"
    assert re.fullmatch(download.CHECKSUM, checksum)
    path = get(url, checksum=checksum)
    assert path == cache / "x.tar.gz" and path.read_bytes() == BODY
    assert left_in(cache) == {"x.tar.gz"}
    assert get(url, checksum=checksum) == path and server.requests == [Request("/a", None, 300_000)]
    out, err = capfd.readouterr()
    assert out == f"{path}: 300000 bytes from {url}\n"
    assert "x.tar.gz: 100%" in err and "293k/293k" in err and "B/s" in err


@pytest.mark.parametrize("checksum", [CHECKSUM, None])
def test_a_file_in_the_cache_needs_no_network(cache, checksum):
    cache.mkdir()
    (cache / "x.tar.gz").write_bytes(BODY)
    assert get("http://127.0.0.1:1/a", checksum=checksum).read_bytes() == BODY


def test_a_file_whose_bytes_changed_in_the_cache_is_downloaded_again(server, cache):
    cache.mkdir()
    (cache / "x.tar.gz").write_bytes(WRONG)
    assert get(server.url("/a", GOOD)).read_bytes() == BODY
    assert ranges(server) == [None]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("stalls", [True, False])
def test_a_broken_download_is_continued_where_the_server_can(server, cache, stalls, ranges):
    broken = Answer(body=BODY, sends=CUT, stalls=stalls)
    assert get(server.url("/a", broken, Answer(body=BODY, ranges=ranges))).read_bytes() == BODY
    first, second = server.requests
    start = CUT - CUT % download.PIECE if stalls else CUT
    assert (first.range, second.range) == (None, f"bytes={start}-")
    assert (first.sent, second.sent) == (CUT, len(BODY) - start if ranges else len(BODY))


def test_a_cut_that_only_the_checksum_shows_leads_to_the_mirror(server, cache):
    cut = Answer(body=BODY, sends=CUT, length=False)
    assert get(server.url("/a", cut), server.url("/b", GOOD)).read_bytes() == BODY
    assert ranges(server) == [None, None]


def test_a_download_without_a_checksum_is_continued_too(server, cache):
    url = server.url("/a", Answer(body=BODY, sends=CUT), GOOD)
    assert get(url, checksum=None).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={CUT}-"]


def test_without_a_checksum_an_earlier_part_is_not_continued(server, cache):
    cache.mkdir()
    (cache / "x.tar.gz.part").write_bytes(WRONG[::-1][:CUT])
    assert get(server.url("/a", GOOD), checksum=None).read_bytes() == BODY
    (cache / "x.tar.gz").unlink()
    cut = Answer(body=WRONG[::-1], sends=CUT)
    urls = server.url("/b", cut, NOT_FOUND), server.url("/c", GOOD)
    assert get(*urls, checksum=None).read_bytes() == BODY


def test_a_mirror_continues_what_the_first_has_sent(server, cache):
    cut, gone = Answer(body=BODY, sends=CUT), Answer(status=500)
    assert get(server.url("/a", cut, gone), server.url("/b", GOOD)).read_bytes() == BODY
    assert server.requests[-1] == Request("/b", f"bytes={CUT}-", len(BODY) - CUT)


def test_a_part_that_is_already_whole_gets_its_name(server, cache):
    cache.mkdir()
    (cache / "x.tar.gz.part").write_bytes(BODY)
    assert get(server.url("/a", GOOD)).read_bytes() == BODY
    assert [request.sent for request in server.requests] == [0] and left_in(cache) == {"x.tar.gz"}


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 1])
def test_a_wrong_part_of_full_length_is_started_again(server, cache, size):
    cache.mkdir()
    (cache / "x.tar.gz.part").write_bytes(bytes(size))
    url = server.url("/a", Answer(body=BODY, range_size=False))
    assert get(url).read_bytes() == BODY
    assert ranges(server) == [f"bytes={size}-", None]


def test_an_answer_with_the_wrong_range_is_not_used(server, cache):
    url = server.url("/a", Answer(body=BODY, sends=CUT), Answer(body=BODY, shift=5), GOOD)
    assert get(url).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={CUT}-", None]


def test_a_server_may_send_the_rest_in_portions(server, cache):
    first, portion = Answer(body=BODY, sends=CUT), Answer(body=BODY, longest=60_000)
    assert get(server.url("/a", first, portion)).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=200000-", "bytes=260000-"]


def test_an_earlier_part_with_wrong_bytes_costs_one_more_download(server, cache):
    cache.mkdir()
    (cache / "x.tar.gz.part").write_bytes(bytes(CUT))
    assert get(server.url("/a", GOOD)).read_bytes() == BODY
    assert ranges(server) == [f"bytes={CUT}-", None]


def test_a_file_that_is_called_compressed_stays_as_it_is(server, cache):
    url = server.url("/a", Answer(body=BODY, encoding="gzip"))
    assert get(url).read_bytes() == BODY


@pytest.mark.parametrize(
    "bad", [Answer(status=500), Answer(status=503), Answer(body=BODY, stalls=True, sends=0)]
)
def test_after_an_error_that_may_pass_the_url_is_tried_again(server, cache, bad):
    assert get(server.url("/a", bad, bad, bad, GOOD)).read_bytes() == BODY
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_error_that_will_not_pass_leads_to_the_mirror_at_once(server, cache, status):
    urls = server.url("/a", Answer(status=status)), server.url("/b", GOOD)
    assert get(*urls).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/a", "/b"]


def test_wrong_bytes_lead_to_the_mirror_and_are_not_kept(server, cache):
    urls = server.url("/a", Answer(body=WRONG)), server.url("/b", GOOD)
    assert get(*urls).read_bytes() == BODY
    assert server.requests == [Request(path, None, len(BODY)) for path in ("/a", "/b")]


def test_wrong_bytes_everywhere_leave_nothing_behind(server, cache):
    url = server.url("/a", Answer(body=WRONG))
    assert refusal(url) == (
        f"x.tar.gz could not be downloaded: {url} (has {WRONG_CHECKSUM}, not {CHECKSUM}); "
        "set dataset.archive to a local copy"
    )
    assert left_in(cache) == set()


def test_the_refusal_has_every_url_and_why(server, cache):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    urls = [
        server.url("/a", NOT_FOUND),
        server.url("/b", Answer(status=503)),
        server.url("/c", Answer(body=BODY, sends=0, stalls=True)),
        server.url("/d", Answer(body=WRONG)),
        server.url("/e", Answer(body=BODY, sends=CUT, ranges=False)),
        f"http://127.0.0.1:{port}/f",
        "nonsense",
    ]
    text = refusal(*urls)
    reasons = [
        "404 Not Found",
        "503 Service Unavailable",
        "timed out",
        f"has {WRONG_CHECKSUM}, not {CHECKSUM}",
        "IncompleteRead(200000 bytes read, 100000 more expected)",
        "[Errno 111] Connection refused",
        "Invalid URL 'nonsense': No scheme supplied. Perhaps you meant https://nonsense?",
    ]
    told = ", ".join(f"{url} ({reason})" for url, reason in zip(urls, reasons))
    instead = "set dataset.archive to a local copy"
    assert text == f"x.tar.gz could not be downloaded: {told}; {instead}"
    asked = "".join(request.path for request in server.requests)
    assert asked == "/a" + 4 * "/b" + 4 * "/c" + "/d" + 4 * "/e"
    assert (cache / "x.tar.gz.part").read_bytes() == BODY[:CUT]  # for another day
    assert left_in(cache) == {"x.tar.gz.part"}


def test_a_file_without_any_url_is_refused(cache):
    assert "no URL is given; set dataset.archive" in refusal()


def test_no_space_left_is_told(server, cache):
    cache.mkdir()
    (cache / "x.tar.gz.part").symlink_to("/dev/full")
    text = refusal(server.url("/a", GOOD))
    assert text == f"{cache}/x.tar.gz could not be written: [Errno 28] No space left on device"
    assert not (cache / "x.tar.gz").exists()


def test_a_cache_folder_that_cannot_be_made_is_told(server, cache):
    cache.touch()
    assert "could not be written: [Errno 17] File exists" in refusal(server.url("/a", GOOD))


def start(url):
    """Download in another process."""
    code = f"from richkd.base.download import fetch; fetch([{url!r}], 'x.tar.gz', {CHECKSUM!r}, '')"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_a_killed_download_is_continued(server, cache):
    url = server.url("/a", Answer(body=BODY, seconds=5), GOOD)
    process, part = start(url), cache / "x.tar.gz.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left_in(cache) == {"x.tar.gz.part"}
    size = part.stat().st_size
    assert get(url).read_bytes() == BODY
    assert server.requests[1] == Request("/a", f"bytes={size}-", len(BODY) - size)
    assert 0 < size < len(BODY) and left_in(cache) == {"x.tar.gz"}


def test_two_processes_share_one_download(server, cache):
    url = server.url("/a", Answer(body=BODY, seconds=2))
    processes = [start(url), start(url)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (cache / "x.tar.gz").read_bytes() == BODY
    assert server.requests == [Request("/a", None, len(BODY))]


def test_verify_names_both_checksums(tmp_path):
    path = tmp_path / "mine.tar.gz"
    path.write_bytes(BODY)
    verify(path, CHECKSUM, "dataset.archive")
    with pytest.raises(InputError) as caught:
        verify(path, WRONG_CHECKSUM, "dataset.archive")
    assert str(caught.value) == (
        f"dataset.archive: {path} has {CHECKSUM}, must have {WRONG_CHECKSUM}"
    )
    with pytest.raises(InputError) as caught:
        verify(tmp_path / "gone", CHECKSUM, "dataset.archive")
    assert str(caught.value) == (
        f"dataset.archive: {tmp_path}/gone could not be read: No such file or directory"
    )


def make_tar(path, *entries, mode="w:gz"):
    """Write a tar. An entry is a name and its bytes, or a name and fields of its TarInfo."""
    with tarfile.open(path, mode) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                for field, value in content.items():
                    setattr(info, field, value)
                tar.addfile(info)
    return path


def contents(path):
    with members(path) as files:
        return {name: content() for name, content in files.items()}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_are_read_in_memory(here, mode):
    path = make_tar(
        here / "x.tar",
        ("folder", {"type": tarfile.DIRTYPE}),
        ("folder/a", b"first"),
        ("folder/link", {"type": tarfile.SYMTYPE, "linkname": "a"}),
        ("b", b""),
        mode=mode,
    )
    assert contents(path) == {"folder/a": b"first", "b": b""}
    assert list(here.iterdir()) == [path]


def test_links_in_the_working_folder_do_not_matter(here):
    (here / "folder").symlink_to("/")
    assert contents(make_tar(here / "x.tar", ("folder/a", b"a"))) == {"folder/a": b"a"}


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
UNSAFE = {
    "above": ("../evil", b"x"),
    "above, by a detour": ("a/../../evil", b"x"),
    "absolute": ("/tmp/evil", b"x"),
    "link out": ("evil", {"type": LINK, "linkname": "../secret"}),
    "absolute link": ("evil", {"type": LINK, "linkname": "/etc/passwd"}),
    "hard link out": ("evil", {"type": HARD, "linkname": "../secret"}),
}


@pytest.mark.parametrize("entry", UNSAFE.values(), ids=UNSAFE)
def test_a_member_that_leads_out_is_refused_before_any_is_read(tmp_path, entry):
    path = make_tar(tmp_path / "x.tar", ("a", b"a"), entry)
    with pytest.raises(InputError) as caught, members(path):
        pytest.fail("read")
    assert str(caught.value) == f"{path}: refused, member {entry[0]!r} would leave the folder"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("type_", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(tmp_path, type_):
    path = make_tar(tmp_path / "x.tar", ("evil", {"type": type_}))
    with pytest.raises(InputError, match="x.tar: refused, member 'evil' is a device"):
        contents(path)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9])
def test_a_truncated_tar_is_refused(tmp_path, mode, share):
    path = make_tar(tmp_path / "x.tar", ("a", BODY), ("b", BODY), mode=mode)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(InputError) as caught:
        contents(path)
    assert str(caught.value) == f"{path} is damaged, or not a tar archive"


@pytest.mark.parametrize("place", [1, 20, 100_000, 500_000, -6])
def test_a_compressed_tar_with_a_wrong_byte_is_refused_before_any_is_read(tmp_path, place):
    path = make_tar(tmp_path / "x.tar", ("a", BODY), ("b", BODY))
    bytes_ = bytearray(path.read_bytes())
    bytes_[place] ^= 0xFF
    path.write_bytes(bytes_)
    with pytest.raises(InputError) as caught, members(path):
        pytest.fail("read")
    assert str(caught.value) == f"{path} is damaged, or not a tar archive"


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_text("<html>Sign in to this network</html>")
    with pytest.raises(InputError, match="x.tar is damaged, or not a tar archive"):
        contents(tmp_path / "x.tar")
    for name, reason in (("gone", "No such file or directory"), ("", "Is a directory")):
        with pytest.raises(InputError, match=f"could not be read: {reason}"):
            contents(tmp_path / name)


def test_an_error_of_the_reader_stays_what_it_is(tmp_path):
    path = make_tar(tmp_path / "x.tar", ("a", b"a"))
    with pytest.raises(OSError, match="mine"), members(path):
        raise OSError("mine")


# --- archives made to be endless ----------------------------------------------------------------


def header(name="a", size=0, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(record, value):
    """A pax header with one record, and the header of the member that it belongs to."""
    content = next(
        text
        for digits in range(1, 9)
        if len(text := f"{len(f' {record}={value}') + digits + 1} {record}={value}\n") < 10**digits
        and int(text.split()[0]) == len(text)
    ).encode()
    return header("p", len(content), b"x") + content.ljust(512, b"\0") + header()


def negative(kind):
    """A header that declares -512 bytes."""
    fields = bytearray(header("a", 0, kind))
    fields[124:136] = (-512).to_bytes(12, "big", signed=True)
    fields[148:156] = b" " * 8
    fields[148:156] = b"%06o\0 " % sum(fields)
    return bytes(fields)


BOUND = "member 'a' must have 0 to 500,000,000 bytes"
MANY = "a member has too many headers"
DAMAGED = "is damaged, or not a tar archive"
NAME = header("@LongLink", 5, b"L") + b"name".ljust(512, b"\0")
EMPTY = bytes(1024)
HOSTILE = {
    "long names": (NAME * 3000, MANY),
    "pax headers": (pax("path", "b")[:1024] * 3000, MANY),
    "a name of 20 GB": (
        header("@LongLink", 2 * 10**10, b"L"),
        "its headers have more than",
    ),
    "a name of -512 bytes": (negative(b"L"), "its headers have more than"),
    "pax of 8 GB": (header("p", 8**11 - 1, b"x"), "its headers have more than"),
    "a file of -512 bytes": (negative(b"0"), BOUND),
    "a file of 8 GB": (header("a", 8**11 - 1), BOUND),
    "a file of 8 GB by pax": (
        pax("size", 8 * 10**9),
        BOUND,
    ),
    "sparse": (pax("GNU.sparse.map", "0,1"), "member 'a' is sparse"),
    "sparse nonsense": (pax("GNU.sparse.map", "x,y"), DAMAGED),
    "a size of 400 digits": (pax("size", "9" * 400), BOUND),
    "NUL in a name": (pax("path", "a\0b"), "member 'a\\x00b' has a NUL in its name"),
    "NUL in a link": (pax("linkpath", "a\0b"), "member 'a' has a NUL in its name"),
    "headers without end": (header() * 9000, "its headers have more than 4,194,304 bytes"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_at_once(tmp_path, content, said, packed):
    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(content + EMPTY, 1) if packed else content + EMPTY)
    began = time.monotonic()
    with pytest.raises(InputError) as caught, members(path):
        pytest.fail("read")
    text = str(caught.value)
    expected = f"{path} {said}" if said == DAMAGED else f"{path}: refused, {said}"
    assert text.startswith(expected) and "\n" not in text
    assert time.monotonic() - began < 10


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TOTAL", 10**6)
    zeros = gzip.compress(bytes(10**6), 1)
    (tmp_path / "x.tar").write_bytes(gzip.compress(header() + EMPTY, 1) + zeros * 1000)
    with pytest.raises(InputError, match="refused, it has more than 1,000,000 bytes"):
        contents(tmp_path / "x.tar")
    path = make_tar(tmp_path / "y.tar", *((name, bytes(400_000)) for name in "abc"))
    with pytest.raises(InputError, match="refused, its members have more than 1,000,000 bytes"):
        contents(path)


def test_a_member_larger_than_the_bound_is_refused(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "x.tar", ("a", bytes(1000)), ("b", bytes(1001)))
    monkeypatch.setattr(download, "MEMBER", 1001)
    assert len(contents(path)["b"]) == 1001
    monkeypatch.setattr(download, "MEMBER", 1000)
    with pytest.raises(InputError, match="refused, member 'b' must have 0 to 1,000 bytes"):
        contents(path)


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_other_compressions_are_read(tmp_path, mode):
    assert contents(make_tar(tmp_path / "x.tar", ("a", BODY), mode=mode)) == {"a": BODY}
