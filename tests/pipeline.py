"""The real pipeline in a temporary clone: started, killed, looked at."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
# On the CPU, which gives the same bits again, and has room for several processes.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "CUDA_VISIBLE_DEVICES": "",
}


def clone(to: Path) -> Path:
    """The working tree as a new user would get it, with the smoke preset in place."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.check_output(listing, cwd=REPOSITORY, text=True).split("\0")
    for name in filter(None, files):
        if (REPOSITORY / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, to / name)
    command(to, "python", "-m", "richkd", "preset", "smoke")
    command(to, "git", "init", "-q")
    commit(to, "clone")
    return to


def commit(folder: Path, message: str) -> None:
    command(folder, "git", "add", "-A")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command(folder, "git", *who, "commit", "-q", "-m", message)


def command(folder: Path, *words: str) -> str:
    """Run to the end; what it printed, stderr and stdout together."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def stage(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


def started(folder: Path, sign: str, *words: str) -> subprocess.Popen:
    """A command that runs on, from when `.resume/<sign>` is there; what it says goes to `log`."""
    with open(folder / "log", "w") as log:
        run = subprocess.Popen(
            words, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    while not (folder / ".resume" / sign).exists():
        assert run.poll() is None, (folder / "log").read_text()
        time.sleep(0.001)
    return run


def kill(run: subprocess.Popen) -> None:
    """With all that it has started."""
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.+?)'", output))


def edit(folder: Path, key: str, value: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    *parents, name = key.split(".")
    section = params
    for parent in parents:
        section = section[parent]
    section[name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
