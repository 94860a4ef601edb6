"""The real pipeline in a temporary clone: started, killed, looked at."""

import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
STUDENTS = ("ce", "kd", "LF")  # of the smoke preset
# The CPU gives the same bits again, and has room for several processes.
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


def try_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def command(folder: Path, *words: str) -> str:
    """Run a command that must succeed; returns its stdout."""
    done = try_command(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stage(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return try_command(folder, "python", "-m", *words)


def refusal(patch: pytest.MonkeyPatch, name: str, *words: str) -> str:
    """The line with which `python -m stages.<name> <words>` ends here, in this process."""
    patch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(REPOSITORY / f"stages/{name}.py"), run_name="__main__")
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line
    return line


def started(folder: Path, sign: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a command; returns once `.resume/<sign>` is there. Its output goes to `log`."""
    with open(folder / "log", "w") as log:
        run = subprocess.Popen(
            words,
            cwd=folder,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Tests that a shell runs in the background ignore Ctrl-C, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    while not (folder / ".resume" / sign).exists():
        assert run.poll() is None, (folder / "log").read_text()
        time.sleep(0.001)
    return run


def kill(run: subprocess.Popen[bytes]) -> None:
    """Kill a command and all processes that it has started."""
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def content(folder: Path) -> dict[str, bytes]:
    """The content of every file in the folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hashes(folder: Path) -> dict[str, str]:
    """The hash of each student's weights, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("models/*/*.safetensors")
        if path.parent.name not in ("teacher", "clip")
    }


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.+?)'", output))


def edit(folder: Path, key: str, value: object) -> None:
    """Set a value in the folder's params.yaml."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    *parents, name = key.split(".")
    section = params
    for parent in parents:
        section = section[parent]
    section[name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
