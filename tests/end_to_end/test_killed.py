"""Real kills: the next run goes on from the last epoch or shard, and ends in the same bytes."""

from pathlib import Path

import psutil
import pytest
from pipeline import ENVIRONMENT, clone, command, content, edit, hashes, kill, stage, started

pytestmark = pytest.mark.slow


def test_killed_and_run_again_ends_the_same(reproduced: Path, tmp_path: Path) -> None:
    """SIGKILL during clip, cache and distill; each time `dvc repro` goes on and ends the same."""
    folder = clone(tmp_path / "clone")
    repro = ["dvc", "repro", "distill@kd", "distill@LF"]
    moments = [
        ("models/clip/seed0.safetensors", "clip.pt"),
        ("cache/teacher/cache.json", "cache-teacher/logits-000.npy"),
        ("models/LF/seed1.safetensors", "LF-seed1.pt"),
    ]
    for output, sign in moments:
        kill(started(folder, sign, *repro))
        assert not (folder / output).exists(), f"{output} was done before the kill"
    assert "going on from .resume/LF-seed1.pt" in command(folder, *repro)
    unbroken = {path: x for path, x in hashes(reproduced).items() if "/ce/" not in path}
    assert hashes(folder) == unbroken


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
    assert result.stdout.count("going on from .resume/LF-seed1.pt") == 1  # process 0 alone prints
    resumed = content(copy / "models/LF")
    assert stage(copy, "stages.distill", "LF").returncode == 0
    assert content(copy / "models/LF") == resumed
