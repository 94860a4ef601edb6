"""One script a stage: it reads its params, calls richkd and writes its outputs."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stages import _signals

if sys.argv[0] == "-m":  # `python -m stages.<name>` is at its beginning, before the long imports
    _signals.install()

from richkd import params
from richkd.base import kept
from richkd.base.errors import InputError, stop
from richkd.base.files import remove_unfinished

if os.environ.get("RANK", "0") != "0":  # the first of several processes speaks for all
    os.environ["TQDM_DISABLE"] = "1"


def variant_names() -> list[str]:
    """The names in `distill.variants`."""
    return list(params.load("distill.variants").distill.variants)


def run(
    main: Callable[..., None],
    choices: Callable[[], Sequence[str]] | None = None,
    parallel: bool = False,
) -> None:
    """Run a stage, with the one of `choices()` that the command line names if there are any.

    Bad input is one line and exit code 1. A `parallel` stage may run under torchrun: with
    RICHKD_PROCESSES in the environment the stage starts that many processes on this machine.
    RICHKD_LAUNCH is a command that starts them in another way, on several machines for example:
    `torchrun --nnodes 2 …`.
    """
    words = sys.argv[1:]
    try:
        names = choices() if choices else []
        if len(words) != bool(choices) or not set(words) <= set(names):
            allowed = f"name one of {', '.join(names)}" if choices else "takes no word"
            raise InputError(f"called with {' '.join(words) or 'nothing'}: {allowed}")
        remove_unfinished()
        wanted = os.environ.get("RICHKD_PROCESSES", "1")
        if not re.fullmatch("[1-9][0-9]{0,3}", wanted):
            raise InputError(
                f"RICHKD_PROCESSES is {wanted[:20]!r}: must be a number of processes, 1 to 9999"
            )
        if os.environ.get("RANK", "0") != "0":
            sys.stdout = open(os.devnull, "w")
            main(*words)
            return
        with kept.lock("-".join([Path(sys.argv[0]).stem, *words])) as lock:
            kept.remove_recorded(Path("dvc.lock"))
            command = os.environ.get("RICHKD_LAUNCH")
            if parallel and "RANK" not in os.environ and (command or wanted != "1"):
                params.load()  # one error line, not one from each process
                lock.release()  # the first of the processes takes it
                launch_by(command, words) if command else launch(int(wanted), words)
            else:
                main(*words)
    except (InputError, OSError) as error:
        stop(error)


def module() -> str:
    """What `python -m` was told to run."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # a stage is started as `python -m stages.<name>`
    return spec.name


def launch_by(command: str, words: list[str]) -> NoReturn:
    """Become the command, which starts this stage in several processes."""
    try:
        first, *rest = shlex.split(command)
    except ValueError:  # a quote is not closed, or there is no word
        raise InputError(f"RICHKD_LAUNCH is {command!r}: must be a command") from None
    # `richkd.base.distributed.join` says why.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        os.execvp(first, [first, *rest, "-m", module(), *words])
    except (OSError, ValueError) as error:  # not there, no program, a NUL in its name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"RICHKD_LAUNCH is {command!r}: {first} does not start: {reason}"
        ) from None


def launch(processes: int, words: list[str]) -> None:
    """This command in several processes, as `torchrun --standalone` starts them."""
    import psutil
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def end_all(number: int, frame: FrameType | None) -> None:
        for process in psutil.Process().children():
            process.kill()
        print(file=sys.stderr)  # ends the line of a progress bar
        _signals.end(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) == _signals.end:
            signal.signal(number, end_all)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="richkd",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGHUP,SIGQUIT",  # torch's handlers print tracebacks
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module(), *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        stop(f"process {rank} of {processes} ended with exit code {failure.exitcode}")
