"""A stage in several processes."""

import os
import shlex
import signal
import sys
from types import FrameType
from typing import NoReturn

from richkd.base.errors import InputError, stop
from stages import _signals


def module() -> str:
    """What `python -m` was told to run."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # a stage is started as `python -m stages.<name>`
    return spec.name


def by_command(command: str, words: list[str]) -> NoReturn:
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


def in_processes(processes: int, words: list[str]) -> None:
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
