"""One script a stage: it reads its params, calls richkd and writes its outputs."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence

from richkd import params
from richkd.base.errors import InputError, stop

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
        wanted = os.environ.get("RICHKD_PROCESSES", "1")
        if not wanted.isdecimal() or int(wanted) < 1:
            raise InputError(f"RICHKD_PROCESSES is {wanted!r}: must be a number of processes")
        if "RANK" in os.environ:
            if os.environ["RANK"] != "0":
                sys.stdout = open(os.devnull, "w")
            main(*words)
        elif parallel and (command := os.environ.get("RICHKD_LAUNCH")):
            params.load()  # one error line, not one from each process
            try:
                first, *rest = shlex.split(command)
            except ValueError:  # a quote is not closed, or there is no word
                raise InputError(f"RICHKD_LAUNCH is {command!r}: must be a command") from None
            # `richkd.base.distributed.join` says why.
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
            os.execvp(first, [first, *rest, "-m", module(), *words])
        elif parallel and int(wanted) > 1:
            params.load()
            launch(int(wanted), words)
        else:
            main(*words)
    except (InputError, OSError) as error:
        stop(error)


def module() -> str:
    """What `python -m` was told to run."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # a stage is started as `python -m stages.<name>`
    return spec.name


def launch(processes: int, words: list[str]) -> None:
    """This command in several processes, as `torchrun --standalone` starts them."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module(), *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        stop(f"process {rank} of {processes} ended with exit code {failure.exitcode}")
