"""How a stage starts and ends: the environment, the lock, signals, DVC's own lock."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import stages
from richkd.base import kept
from stages import _launch

ROOT = Path(__file__).parents[2]
LINE = "interrupted; the same command goes on"


@pytest.fixture
def settings(here):
    preset = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(preset))


def ended(main, patch, parallel=True):
    """The line with which a stage ends."""
    patch.setattr(sys, "argv", ["stages/some.py"])
    with pytest.raises(SystemExit) as caught:
        stages.run(main, parallel=parallel)
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line and len(line) <= 300
    return line


def never():
    pytest.fail("the stage has run")


# --- the environment ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "٣", "1.5", "01", "9" * 5000])
def test_a_number_of_processes_that_is_none_is_one_line(settings, monkeypatch, value):
    monkeypatch.setenv("RICHKD_PROCESSES", value)
    said = ended(never, monkeypatch)
    assert said.startswith(f"error: RICHKD_PROCESSES is {value[:20]!r}: must be a number of proce")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("not-there-at-all --nnodes 2", "not-there-at-all does not start: No such file or dir"),
        ("./params.yaml", "./params.yaml does not start: Permission denied"),
        (". x", ". does not start: Permission denied"),
        ("'", 'RICHKD_LAUNCH is "\'": must be a command'),
        ("   ", "RICHKD_LAUNCH is '   ': must be a command"),
    ],
)
def test_a_launcher_that_does_not_start_is_one_line(settings, monkeypatch, value, said):
    monkeypatch.setattr(_launch, "module", lambda: "stages.some")
    monkeypatch.setenv("RICHKD_LAUNCH", value)
    line = ended(never, monkeypatch)
    assert line.startswith("error: RICHKD_LAUNCH is ") and said in line


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=["numpy", "the allocator", "a graph"],
)
def test_memory_that_runs_out_anywhere_in_a_stage_is_one_line(settings, monkeypatch, error):
    def main():
        raise error

    line = ended(main, monkeypatch, parallel=False)
    assert line.startswith("error: out of memory: lower the batch sizes, runtime.seeds_at_once or ")


def test_another_error_of_a_stage_keeps_its_traceback(settings, monkeypatch):
    def main():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(sys, "argv", ["stages/some.py"])
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        stages.run(main)


# --- the lock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [None, "true"])
def test_two_of_one_stage_at_once_are_refused_before_any_work(settings, monkeypatch, launcher):
    if launcher:
        monkeypatch.setenv("RICHKD_LAUNCH", launcher)
    with kept.lock("some"):
        assert ended(never, monkeypatch) == "error: stage some: another run is at it"
    monkeypatch.delenv("RICHKD_LAUNCH", raising=False)
    done = []
    stages.run(lambda: done.append(kept.FOLDER.exists()))
    stages.run(lambda: done.append(True))  # the lock is free again
    assert done == [True, True]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_takes_the_lock(settings, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["stages/some.py"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # process 1 replaces it
    done = []
    with kept.lock("some"):
        if rank == "0":
            assert "another run is at it" in ended(never, monkeypatch)
        else:
            stages.run(lambda: done.append(True), parallel=True)
    assert len(done) == int(rank)


def test_a_start_removes_what_dvc_has_recorded(settings, monkeypatch):
    removed = []
    monkeypatch.setattr(kept, "remove_recorded", removed.append)
    monkeypatch.setattr(sys, "argv", ["stages/some.py"])
    stages.run(lambda: None)
    assert removed == [Path("dvc.lock")]


# --- signals ------------------------------------------------------------------------------------

STAGE = """
import sys, time
import stages
from tqdm import tqdm


def main():
    bar = tqdm(total=10, desc="work")
    bar.update(3)
    print("working", flush=True)
    try:
        while True:
            time.sleep(0.01)
    except BaseException:
        print("caught")
        raise


if __name__ == "__main__":
    stages.run(main)
"""


@pytest.fixture
def start(here):
    """A function that starts a stage: one that the project has, or `some`, which never ends."""
    (here / "stages").mkdir()
    for path in (ROOT / "stages").glob("*.py"):
        shutil.copy(path, here / "stages")
    (here / "stages/some.py").write_text(STAGE)
    init = (here / "stages/__init__.py").read_text()
    begun = 'print("begun", flush=True)\nfrom richkd import params\n'
    assert init.count("from richkd import params\n") == 1
    (here / "stages/__init__.py").write_text(init.replace("from richkd import params\n", begun))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(*words):
        words = [sys.executable, "-m", *words]
        return subprocess.Popen(
            words,
            env=environment,
            start_new_session=True,
            # Tests that a shell runs in the background ignore Ctrl-C, and so would the stage.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            **pipes,
        )

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stage_with_one_line(start, number, code):
    run = start("stages.some")
    assert [run.stdout.readline() for _ in range(2)] == ["begun\n", "working\n"]
    run.send_signal(number)
    out, err = run.communicate(timeout=30)
    assert run.returncode == code and out == ""
    *bar, line = err.splitlines()
    assert line == LINE and all(text.startswith("work: ") or not text for text in bar)
    assert err.endswith(f"\n{LINE}\n")  # not behind a bar


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4, 0.8, 1.2])
def test_ctrl_c_during_imports_is_one_line(start, delay):
    run = start("stages.distill", "LF")
    assert run.stdout.readline() == "begun\n"
    time.sleep(delay)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    # It may have ended before: there are no params here.
    if run.returncode == 1:
        assert err.startswith("error: params.yaml could not be read") and err.count("\n") == 1
    else:
        assert (run.returncode, err) == (130, f"{LINE}\n")


def test_handlers_that_somebody_chose_stay(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        stages._signals.install()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- DVC's lock ---------------------------------------------------------------------------------


def mend():
    runpy.run_path(str(ROOT / "stages/_rwlock.py"), run_name="__main__")


@pytest.fixture
def rwlock(here):
    (here / ".dvc/tmp").mkdir(parents=True)
    for name in ("lock", "rwlock.lock"):
        (here / ".dvc/tmp" / name).write_text(" 1\n")
    return here / ".dvc/tmp/rwlock"


@pytest.mark.parametrize("text", ["", '{"read": {"/a', "\0\0\0\0"])
def test_a_broken_rwlock_is_removed_and_that_is_said(rwlock, capsys, text):
    rwlock.write_text(text)
    mend()
    assert not rwlock.exists()
    said = ".dvc/tmp/rwlock was not JSON, left by an interrupted DVC: removed\n"
    assert capsys.readouterr().out == said
    mend()  # without the file
    assert capsys.readouterr().out == ""


def test_a_whole_rwlock_stays(rwlock, capsys):
    rwlock.write_text("{}")
    mend()
    assert rwlock.read_text() == "{}" and capsys.readouterr().out == ""


HOLD = """
import sys, fcntl
file = open(sys.argv[2])
if sys.argv[1] == "hold":
    fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("program", "word", "said"),
    [
        ("holds.py", "hold", "stays because .dvc/tmp/rwlock.lock is locked"),
        ("dvc", "repro", "stays because process {pid} is DVC"),
    ],
)
def test_where_dvc_runs_a_broken_rwlock_stays(rwlock, here, capsys, program, word, said):
    rwlock.write_text("")
    (here / program).write_text(HOLD)
    words = [sys.executable, program, word, ".dvc/tmp/rwlock.lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as other:
        assert other.stdout.readline() == b"ready\n"
        mend()
        other.kill()
    assert rwlock.exists() and said.format(pid=other.pid) in capsys.readouterr().out
