"""Real kills: the next run goes on from the last epoch or shard, and ends in the same bytes."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from pipeline import (
    ENVIRONMENT,
    clone,
    command,
    content,
    edit,
    hashes,
    kill,
    stage,
    stages_run,
    started,
)

pytestmark = pytest.mark.slow


def test_killed_and_run_again_ends_the_same(reproduced: Path, tmp_path: Path) -> None:
    """SIGKILL during clip, cache and distill; each time `dvc repro` goes on and ends the same."""
    folder = clone(tmp_path / "clone")
    # The order in which DVC runs stages that do not need each other changes from run to run.
    moments = [
        ("clip", "models/clip/seed0.safetensors", "clip.pt"),
        ("cache@teacher", "cache/teacher/cache.json", "cache-teacher/logits-000.npy"),
        ("distill@LF", "models/LF/seed1.safetensors", "LF-seed1.pt"),
    ]
    for target, output, sign in moments:
        kill(started(folder, sign, "dvc", "repro", target))
        assert not (folder / output).exists(), f"{output} was done before the kill"
    again = command(folder, "dvc", "repro", "distill@kd", "distill@LF")
    assert "continuing from .resume/LF-seed1.pt" in again
    unbroken = {path: x for path, x in hashes(reproduced).items() if "/ce/" not in path}
    assert hashes(folder) == unbroken


def test_killed_before_dvc_has_recorded_a_finished_stage(reproduced: Path, tmp_path: Path) -> None:
    """The stage runs again, and takes what it has finished: no step and no batch is done twice."""
    folder = clone(tmp_path / "clone")
    moments = [
        ("teacher", "finished-models-teacher.json", "teacher-seed0.pt"),
        ("clip", "finished-models-clip.json", "clip.pt"),
        ("cache@teacher", "finished-cache-teacher.json", "cache-teacher/logits-000.npy"),
        ("distill@LF", "finished-models-LF.json", "LF-seed1.pt"),
    ]
    for target, finished, source in moments:
        kill(started(folder, finished, "dvc", "repro", target))
        before = (folder / ".resume" / source).stat()
        again = command(folder, "dvc", "repro", "-s", target)
        assert stages_run(again) == {target} and "continuing from .resume/" in again
        after = (folder / ".resume" / source).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    unbroken = {path: x for path, x in hashes(reproduced).items() if "/LF/" in path}
    assert hashes(folder) == unbroken
    command(folder, "dvc", "repro", "evaluate@LF")
    assert [path.name for path in (folder / ".resume").iterdir()] == ["locks"]


def test_ctrl_c_in_two_processes_is_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a terminal sends it: to all processes at once; SIGTERM to the first one alone."""
    monkeypatch.setitem(ENVIRONMENT, "GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_PROCESSES", "2")
    edit(copy, "student.epochs", 30)  # time to be interrupted in
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        shutil.rmtree(copy / ".resume")
        run = started(copy, "LF-seed0.pt", "python", "-m", "stages.distill", "LF")
        processes = psutil.Process(run.pid).children()
        assert len(processes) == 2
        send = os.killpg if number == signal.SIGINT else os.kill
        send(run.pid, number)
        assert run.wait(timeout=60) == code
        log = (copy / "log").read_text()
        assert log.endswith("\ninterrupted; the same command goes on\n")
        assert "Traceback" not in log and "Error" not in log and log.count("interrupted") == 1
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
    result = stage(copy, "stages.distill", "LF")
    assert result.returncode == 0, result.stderr
    assert "continuing from .resume/LF-seed0.pt" in result.stdout


def test_one_of_two_processes_dies(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends when one process dies, and the next run ends in the bytes of an unbroken one."""
    monkeypatch.setitem(ENVIRONMENT, "GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_PROCESSES", "2")
    edit(copy, "student.epochs", 30)  # time to be killed in
    command(copy, "rm", "-r", "models/LF")
    run = started(copy, "LF-seed1.pt", "python", "-m", "stages.distill", "LF")
    last = psutil.Process(run.pid).children()[-1]
    assert last.environ()["RANK"] == "1"
    last.kill()
    assert run.wait(timeout=60) == 1
    assert "error: process 1 of 2 ended with exit code -9" in (copy / "log").read_text()
    assert not (copy / "models/LF/seed1.json").exists()
    result = stage(copy, "stages.distill", "LF")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("continuing from .resume/LF-seed1.pt") == 1  # process 0 alone prints
    resumed = content(copy / "models/LF")
    shutil.rmtree(copy / ".resume")
    assert stage(copy, "stages.distill", "LF").returncode == 0
    assert content(copy / "models/LF") == resumed
