"""One script a stage: it reads its params, calls richkd and writes its outputs."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stages import _signals

if sys.argv[0] == "-m":  # `python -m stages.<name>` is at its beginning, before the long imports
    _signals.install()

from richkd import params
from richkd.base import kept
from richkd.base.errors import InputError, stop
from richkd.base.files import remove_unfinished
from stages._launch import by_command, in_processes

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
                params.check_networks()
                lock.release()  # the first of the processes takes it
                by_command(command, words) if command else in_processes(int(wanted), words)
            else:
                main(*words)
    except (InputError, OSError) as error:
        stop(error)
    except (MemoryError, RuntimeError) as error:
        stop_without_memory(error)


def stop_without_memory(error: Exception) -> None:
    """One line where memory ran out and the work has not said which params to lower.

    Raises the error again where something else is wrong.
    """
    from richkd.engine import out_of_memory  # imports torch, which `code` does without

    try:
        with out_of_memory("the batch sizes, runtime.seeds_at_once or the size of the data set"):
            raise error
    except InputError as told:
        stop(told)
