"""A stage in a forked child, as `python -m` runs it, without a second import of torch.

A child has its own standard output, folder, limits and signals. It can be told to die at its n-th
change of a file. What it has done until then is counted in memory that the parent shares.
"""

import atexit
import faulthandler
import fcntl
import importlib
import math
import mmap
import os
import pkgutil
import re
import resource
import runpy
import selectors
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import richkd

REPOSITORY = Path(__file__).parents[2]
Action = Callable[[], object]
# A progress bar with or without an end: `LF seed 0:  40%|███ | 5/12 [00:00<…` and `5step [00:00…`.
BAR = re.compile(r"\d+%\||\d[\w.]*\s?\w* \[\d\d:\d\d")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Python's audit events that change a file, and which of their arguments is the path.
EVENTS = {
    "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.truncate": 0, "os.link": 1,
    "os.symlink": 1,
}  # fmt: skip


def import_all() -> None:
    """Import the whole library and its libraries once, so that children need not."""
    import torch

    from richkd.base import resume
    from richkd.train import seeds

    torch.set_num_threads(1)  # and no thread at the time of a fork
    resume.SECONDS = seeds.SHOWN = 0.0  # every epoch changes the same files, at any speed
    for module in pkgutil.walk_packages(richkd.__path__, "richkd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "open_clip", "sklearn.datasets", "scipy.optimize"):
        importlib.import_module(name)


class Ended(NamedTuple):
    """How a child ended."""

    code: int | None  # minus the signal that killed it; None where the time was over
    out: str
    err: str
    seconds: float
    work: int  # how often a network was called

    @property
    def lines(self) -> list[str]:
        """The lines on standard error as a terminal shows them, without progress bars."""
        shown = (line.rpartition("\r")[2].rstrip(" ") for line in self.err.split("\n"))
        return [line for line in shown if line.replace("\x1b[A", "") and not BAR.search(line)]

    @property
    def refused(self) -> bool:
        return self.code == 1 and self.fault is None

    @property
    def fault(self) -> str | None:
        """Why this is neither success nor one plain line; None where it is."""
        if self.code is None:
            return "no end in time"
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code == 0:
            return None
        if self.code != 1:
            return f"exit code {self.code}"
        return one_plain_line(self.lines)

    @property
    def reason(self) -> str:
        """The end of standard error, for the list of faults."""
        return (self.lines or [""])[-1][:300]


def one_plain_line(lines: list[str], start: str = "error: ") -> str | None:
    """What is wrong with a message that must be one printable line of at most 300 characters."""
    if len(lines) != 1:
        return f"{len(lines)} lines"
    if not lines[0].startswith(start):
        return f"the line does not begin with {start!r}"
    if not lines[0].isprintable():
        return "a character that cannot be printed"
    if len(lines[0]) > len(start) + 300:
        return "a long line"
    return None


class Limits(NamedTuple):
    """What a child may use; None is no limit."""

    seconds: float = 60  # of a CPU; five times as much by the clock
    memory: int | None = None  # bytes beyond what the parent has
    file: int | None = None  # bytes in one file


PLENTY = Limits()


class Child:
    """A running child. Its session is its own: all that it starts can be killed with it."""

    def __init__(self, folder: Path, action: Action, limits: Limits = PLENTY) -> None:
        self.shared = mmap.mmap(-1, 9)  # with the child: its work, and whether its stage has begun
        self.limits, self.begin = limits, time.monotonic()
        pipes = [os.pipe() for _ in range(2)]
        for _, into in pipes:
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20)  # room for a child that none reads yet
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _live(folder, action, limits, [into for _, into in pipes], self.shared)
        for _, into in pipes:
            os.close(into)
        self.ends = [out for out, _ in pipes]

    def wait(self, send: tuple[float, int] | None = None) -> Ended:
        """Wait for the end; `send` is a signal, and how many seconds after the stage has begun."""
        texts: dict[int, list[bytes]] = {end: [] for end in self.ends}
        over, due = self.begin + 5 * self.limits.seconds, math.inf
        late = False
        with selectors.DefaultSelector() as selector:
            for end in self.ends:
                selector.register(end, selectors.EVENT_READ)
            while selector.get_map():
                pause = 0.005 if send else over - time.monotonic()
                for key, _ in selector.select(max(0, pause)):
                    if piece := os.read(key.fd, 1 << 20):
                        texts[key.fd].append(piece)
                    else:
                        selector.unregister(key.fd)
                now = time.monotonic()
                if send and due == math.inf and self.shared[8]:
                    due = now + send[0]
                if send and now >= due:
                    os.kill(self.pid, send[1])
                    send = None
                if now >= over and not late:
                    late = True
                    os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        for end in self.ends:
            os.close(end)
        out, err = (b"".join(texts[end]).decode(errors="backslashreplace") for end in self.ends)
        seconds = time.monotonic() - self.begin
        code: int | None = os.waitstatus_to_exitcode(status)
        if late or code == -signal.SIGXCPU:
            code = None
        return Ended(code, out, err, seconds, struct.unpack("q", self.shared[:8])[0])


def forked(folder: Path, action: Action, limits: Limits = PLENTY) -> Ended:
    """Run the action in a child in the folder, to its end."""
    return Child(folder, action, limits).wait()


def stage(*words: str) -> Action:
    """What `python -m stages.<name> <words>` does."""

    def action() -> None:
        sys.argv = ["-m", *words[1:]]  # what a stage finds while it is imported
        importlib.import_module("stages")
        if _shared:
            _shared[8] = 1
        runpy.run_module(f"stages.{words[0]}", run_name="__main__", alter_sys=True)

    return action


def _live(
    folder: Path, action: Action, limits: Limits, pipes: list[int], shared: mmap.mmap
) -> None:
    """The life of the child. It never returns."""
    code: Any = 1
    try:
        try:
            _begin(folder, limits, pipes, shared)
            action()
            code = 0
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            code = 130
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)


_shared: mmap.mmap | None = None  # in a child: what it shares with its parent


def _begin(folder: Path, limits: Limits, pipes: list[int], shared: mmap.mmap) -> None:
    """Make this process what a fresh Python would be."""
    global _shared
    _shared = shared
    os.setsid()
    faulthandler.disable()  # of pytest
    for number, pipe in enumerate(pipes, 1):
        os.dup2(pipe, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    importlib.reload(warnings)  # pytest had changed where they go
    atexit._clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]
    sys.path.insert(0, str(REPOSITORY))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    resource.setrlimit(
        resource.RLIMIT_CPU, (math.ceil(limits.seconds), math.ceil(limits.seconds) + 5)
    )
    if limits.memory:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
    if limits.file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file,) * 2)
    _count_work(shared)


work_done = 0  # in a child: calls of networks until now


def _count_work(shared: mmap.mmap) -> None:
    """Count the calls of networks, each with all that it calls as one."""
    from torch.nn.modules import module

    depth = 0

    def enter(*_: object) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: object) -> None:
        global work_done
        nonlocal depth
        depth -= 1
        if not depth:
            work_done += 1
            shared[:8] = struct.pack("q", work_done)

    module.register_module_forward_pre_hook(enter)
    module.register_module_forward_hook(leave, always_call=True)


class Change(NamedTuple):
    """A change of a file, and how much work was done before it."""

    kind: str
    path: str
    work: int

    @property
    def saves(self) -> bool:
        """Whether it brings work below .resume: a checkpoint, or rows of a table."""
        checkpoint = self.kind == "os.rename" and self.path.endswith(".pt")
        return self.path.startswith(".resume") and (checkpoint or self.kind == "pwrite")


def read_changes(log: Path) -> list[Change]:
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return [Change(kind, path, int(work)) for kind, path, work in rows]


def watched(
    action: Action, log: Path, deadly: int | None = None, cut: float | None = None
) -> Action:
    """The action, with each change of a file below the working folder noted in `log`, a line each.

    The process dies by SIGKILL where its `deadly`-th change would happen, from 0. With `cut` that
    change happens in part: this share of what is written is there, of what is renamed likewise.
    """

    def watch() -> None:
        notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        root, mine, count = os.getcwd(), os.getpid(), 0

        def happens(kind: str, path: Any, half: Callable[[float], object] | None = None) -> None:
            nonlocal count
            place = os.path.relpath(os.path.join(root, os.fsdecode(path)), root)
            if os.getpid() != mine or place.startswith("..") or os.path.isabs(place):
                return
            os.write(notes, f"{kind}\t{place}\t{work_done}\n".encode())
            count += 1
            if count - 1 == deadly:
                if half and cut is not None:
                    half(cut)
                os.kill(mine, signal.SIGKILL)

        _hook(happens)
        action()

    return watch


def _hook(happens: Callable[..., None]) -> None:
    """Call `happens` before each change of a file that Python's own functions make."""

    def audit(event: str, words: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(words[0], str | bytes | os.PathLike):
            if words[2] & WRITING:
                happens("open", words[0])
        elif event in EVENTS:
            path, source = words[EVENTS[event]], words[0]
            if event == "os.rename" and os.path.isfile(source):
                happens(event, path, lambda share: _shorten(source, share))
            else:
                happens(event, path)

    def path_of(file: int) -> str:
        return os.readlink(f"/proc/self/fd/{file}")

    pwrite, fsync, allocate = os.pwrite, os.fsync, os.posix_fallocate

    def own_pwrite(file: int, data: bytes, offset: int) -> int:
        half = lambda share: pwrite(file, data[: int(share * len(data))], offset)  # noqa: E731
        happens("pwrite", path_of(file), half)
        return pwrite(file, data, offset)

    def own_fsync(file: Any) -> None:
        happens("fsync", path_of(file if isinstance(file, int) else file.fileno()))
        fsync(file)

    def own_allocate(file: int, offset: int, length: int) -> None:
        happens("allocate", path_of(file))
        allocate(file, offset, length)

    os.pwrite, os.fsync, os.posix_fallocate = own_pwrite, own_fsync, own_allocate  # type: ignore
    sys.addaudithook(audit)


def _shorten(path: Any, share: float) -> None:
    os.truncate(path, int(share * os.path.getsize(path)))
