"""The real pipeline through the real `dvc repro`, on the smoke preset, in a temporary clone."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from pipeline import (
    ENVIRONMENT,
    clone,
    command,
    commit,
    content,
    edit,
    kill,
    stage,
    stages_run,
    started,
)
from serving import Answer

from richkd import models

STUDENTS = ("kd", "LF")  # LF has all that L and F have
FOLLOW_FROM_ALPHA = {
    "fusion", "evaluate_fused", "calibrate_fused", "report",
    "distill@LF", "evaluate@LF", "calibrate@LF",
}  # fmt: skip


def students(folder: Path) -> dict[str, str]:
    paths = [path for name in STUDENTS for path in folder.glob(f"models/{name}/*.safetensors")]
    assert len(paths) == 2 * len(STUDENTS)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("unbroken"))
    command(folder, "dvc", "repro")
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing ran."""
    return clone(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def committed(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, before another test changes a parameter, with its results in git."""
    folder = tmp_path_factory.mktemp("committed") / "clone"
    shutil.copytree(reproduced, folder, symlinks=True)
    commit(folder, "results")
    return folder


@pytest.fixture(scope="module")
def unbroken(committed: Path) -> dict[str, str]:
    """The students' hashes, before another test changes a parameter."""
    return students(committed)


def test_everything_is_there(reproduced: Path, unbroken: dict[str, str]) -> None:
    summary = json.loads((reproduced / "metrics/summary.json").read_text())
    assert {"teacher", "clip", "fused", *STUDENTS} <= set(summary)
    assert (reproduced / "report/index.html").stat().st_size > 10_000
    record = json.loads((reproduced / "models/LF/seed1.json").read_text())
    assert record["seed"] == 1
    assert record["params"]["fusion"] == {"alpha": 0.4, "lam": 0.4}
    assert {"versions", "device", "data", "metrics"} <= set(record)
    assert not list((reproduced / ".resume").iterdir())


def test_one_of_two_processes_dies(reproduced: Path, tmp_path: Path, monkeypatch) -> None:
    """A rank that dies ends the run, and the next resumes to the bytes of an unbroken one."""
    for name, value in (("OMP_NUM_THREADS", "1"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setitem(ENVIRONMENT, name, value)
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder)
    edit(folder, "student.epochs", 30)  # time to be killed in
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_PROCESSES", "2")
    run = started(folder, "LF-seed1.pt", "python", "-m", "stages.distill", "LF")
    last = psutil.Process(run.pid).children()[-1]
    assert last.environ()["RANK"] == "1"
    last.kill()
    assert run.wait(timeout=60) == 1
    assert "error: process 1 of 2 ended with exit code -9" in (folder / "log").read_text()
    assert not (folder / "models/LF/seed1.json").exists()
    result = stage(folder, "stages.distill", "LF")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("going on from .resume/LF-seed1.pt") == 1  # rank 0 speaks for all
    resumed = content(folder / "models/LF")
    assert stage(folder, "stages.distill", "LF").returncode == 0
    assert content(folder / "models/LF") == resumed


@pytest.mark.parametrize(
    ("processes", "batch_size", "said"),
    [
        ("two", 16, "error: RICHKD_PROCESSES is 'two': must be a number of processes"),
        (
            "2",
            -1,
            "error: params.yaml: student.batch_size is -1: should be greater than or equal to 2",
        ),
    ],
)
def test_a_wrong_start_of_several_is_one_line(
    fresh: Path, monkeypatch, processes: str, batch_size: int, said: str
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_PROCESSES", processes)
    params = (fresh / "params.yaml").read_text()
    edit(fresh, "student.batch_size", batch_size)
    result = stage(fresh, "stages.distill", "LF")
    (fresh / "params.yaml").write_text(params)
    assert result.returncode == 1 and result.stderr.strip() == said


@pytest.mark.parametrize("command", ["torchrun 'open", " "])
def test_a_launcher_that_is_no_command_is_one_line(fresh: Path, monkeypatch, command: str) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_LAUNCH", command)
    result = stage(fresh, "stages.distill", "LF")
    said = f"error: RICHKD_LAUNCH is {command!r}: must be a command"
    assert result.returncode == 1 and result.stderr.strip() == said


def test_a_second_repro_runs_nothing(reproduced: Path) -> None:
    assert stages_run(command(reproduced, "dvc", "repro")) == set()


def test_a_fresh_clone_agrees_without_the_data(reproduced: Path, tmp_path: Path) -> None:
    """What `make check` relies on: dvc.lock and the metrics in git are enough to tell."""
    tracked = command(reproduced, "git", "ls-files", "-z").split("\0")
    for name in filter(None, [*tracked, "dvc.lock"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(reproduced / name, tmp_path / name)
    shutil.copytree(reproduced / "metrics", tmp_path / "metrics", dirs_exist_ok=True)
    command(tmp_path, "git", "init", "-q")
    dry = ["dvc", "repro", "--dry", "--allow-missing"]
    assert stages_run(command(tmp_path, *dry)) == set()
    edit(tmp_path, "calibration.bins", 7)
    stale = subprocess.run(dry, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert stale.returncode != 0  # there is no data to look further with
    assert "failed to reproduce 'fusion'" in stale.stderr


def test_a_sweep_runs_what_follows_from_alpha_and_takes_the_rest(
    committed: Path, unbroken: dict[str, str]
) -> None:
    """Two queued experiments side by side; then one of them is put in place."""
    command(committed, "dvc", "exp", "run", "--queue", "-S", "fusion.alpha=range(0.1,0.3,0.1)")
    command(committed, "dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 300
    while (status := command(committed, "dvc", "queue", "status")).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(5)
    jobs = re.findall(r"^(\w+) +(\S+).*Success", status, re.MULTILINE)
    for job, _ in jobs:
        log = command(committed, "dvc", "queue", "logs", job)
        assert stages_run(log) == FOLLOW_FROM_ALPHA
        assert {"cache@teacher", "cache@clip"} <= set(
            re.findall(r"Stage '(.+?)' didn't change", log)
        )
    command(committed, "dvc", "exp", "apply", jobs[0][1])
    changed = {path for path, hash in students(committed).items() if hash != unbroken[path]}
    assert changed == {f"models/LF/seed{seed}.safetensors" for seed in (0, 1)}


def test_after_a_pull_there_is_nothing_to_do(committed: Path, tmp_path: Path) -> None:
    """A folder as the remote: push, a fresh clone, pull, and repro runs nothing."""
    (tmp_path / "remote").mkdir()
    command(committed, "dvc", "remote", "add", "-d", "storage", str(tmp_path / "remote"))
    commit(committed, "remote")
    command(committed, "dvc", "push")
    command(tmp_path, "git", "clone", "-q", str(committed), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "cache").exists()
    command(clone, "dvc", "pull")
    output = command(clone, "dvc", "repro")
    assert stages_run(output) == set() and "Data and pipelines are up to date." in output
    assert command(clone, "git", "status", "--porcelain") == ""


def test_another_bound_is_no_other_teacher(reproduced: Path) -> None:
    edit(reproduced, "teacher.min_accuracy", 0.01)
    assert stages_run(command(reproduced, "dvc", "repro")) == {"teacher", "report"}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("clip.prompts", ["a drawing of {}"], "cache/clip was made with another prompt list"),
        ("cache.clip", "all", "cache/clip was made with another set of views"),
        ("views.pad", 2, "cache/teacher was made with another set of views"),
    ],
)
def test_a_cache_of_other_params_is_refused(
    reproduced: Path, key: str, value: object, named: str
) -> None:
    params = (reproduced / "params.yaml").read_text()
    edit(reproduced, key, value)
    result = stage(reproduced, "stages.distill", "LF")
    (reproduced / "params.yaml").write_text(params)
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"error: {named}")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "remake", "named"),
    [
        ("teacher.seed", "stages.teacher", "cache/teacher was made with another teacher"),
        ("dataset.seed", "stages.prepare", "cache/teacher was made with another data set"),
    ],
)
def test_a_cache_of_other_inputs_is_refused(
    reproduced: Path, key: str, remake: str, named: str
) -> None:
    edit(reproduced, key, 5)
    assert stage(reproduced, remake).returncode == 0
    result = stage(reproduced, "stages.baseline", "kd")
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"error: {named}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("fusion.alpha", 1.5, "fusion.alpha is 1.5: should be less than or equal to 1"),
        ("distill.variants", ["LX"], "distill.variants.0 is 'LX': should be 'L', 'F' or 'LF'"),
        ("fusion.alhpa", 0.5, "fusion.alhpa is not a parameter: did you mean alpha?"),
        ("student.lr", "fast", "student.lr is 'fast': should be a valid number"),
        ("dataset.classes", [], "dataset.classes is []"),
        ("dataset.classes", ["one", "eleventy"], "dataset.classes has 'eleventy'"),
        ("dataset.test_images", 5, "dataset has 5 test images: at least 6, one a class"),
        ("student.epochs", -3, "student.epochs is -3: should be greater than or equal to 1"),
    ],
)
def test_wrong_params_are_one_line(fresh: Path, key: str, value: object, said: str) -> None:
    params = (fresh / "params.yaml").read_text()
    edit(fresh, key, value)
    result = stage(fresh, "stages.prepare")
    (fresh / "params.yaml").write_text(params)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    untracked = command(fresh, "git", "status", "--porcelain", "--ignored", "-uall").splitlines()
    assert [line for line in untracked if "__pycache__" not in line] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.calibrate", "LX"], "error: called with LX: name one of teacher, clip, fused"),
        (["stages.calibrate"], "error: called with nothing: name one of teacher, clip, fused"),
        (["stages.prepare", "now"], "error: called with now: takes no word"),
    ],
)
def test_wrong_words_are_one_line(fresh: Path, words: list[str], said: str) -> None:
    result = stage(fresh, *words)
    assert result.returncode == 1
    assert result.stderr.startswith(said)
    assert len(result.stderr.strip().splitlines()) == 1


def test_killed_and_run_again_ends_the_same(tmp_path: Path, unbroken: dict[str, str]) -> None:
    """SIGKILL during clip, cache and distill; each time `dvc repro` goes on and ends the same."""
    folder = clone(tmp_path)
    repro = ["dvc", "repro", "baseline@kd", "distill@LF"]
    moments = [
        ("models/clip/seed0.safetensors", "clip.pt"),
        ("cache/teacher/cache.json", "cache-teacher/logits-000.npy"),
        ("models/LF/seed1.safetensors", "LF-seed1.pt"),
    ]
    for output, sign in moments:
        kill(started(folder, sign, *repro))
        assert not (folder / output).exists(), f"{output} was done before the kill"
    final = command(folder, *repro)
    assert "going on from .resume/LF-seed1.pt" in final
    assert students(folder) == unbroken


def test_cifar100_from_the_web(tmp_path: Path, official, server, monkeypatch) -> None:
    """The other sources, to a student: a mirror, a published teacher, no validation images."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(ENVIRONMENT, "NO_PROXY", "127.0.0.1")
    archive = official["cifar100"].read_bytes()
    teachers, weights = io.BytesIO(), io.BytesIO()
    torch.save({"model": models.create("resnet8", 100).state_dict()}, weights)
    with tarfile.open(fileobj=teachers, mode="w") as tar:
        member = tarfile.TarInfo("cifar_teachers/resnet8_vanilla/ckpt_epoch_240.pth")
        member.size = weights.tell()
        weights.seek(0)
        tar.addfile(member, weights)
    urls = [
        server.url("/gone.tar.gz", Answer(status=404)),
        server.url(
            "/c.tar.gz", Answer(body=archive, sends=len(archive) // 2), Answer(body=archive)
        ),
    ]

    folder = clone(tmp_path / "clone")
    digits = yaml.safe_load((folder / "presets/smoke.yaml").read_text())
    params = yaml.safe_load((folder / "presets/cifar100.yaml").read_text())
    params["dataset"] |= {
        "urls": urls, "sha256": hashlib.sha256(archive).hexdigest(), "train_per_class": 1,
        "captioned_images": 200,
    }  # fmt: skip
    params["views"]["pad"] = 1
    params["teacher"] |= {
        "arch": "resnet8", "min_accuracy": 0.0,
        "urls": [server.url("/teachers.tar", Answer(body=teachers.getvalue()))],
    }  # fmt: skip
    params["clip"] = digits["clip"]
    params["clip"]["training"]["steps"] = 20
    params["student"] |= {"arch": "resnet8", "epochs": 1, "milestones": []}
    params["crd"] |= {"dim": 16, "num_negatives": 16}
    params["baseline"]["variants"], params["distill"]["variants"] = ["kd"], ["LF"]
    params["distill"]["seeds"] = [0]
    params["evaluate"]["models"] = ["teacher", "clip", "kd", "LF"]
    params["corruptions"] = {"source": "generate", "names": ["fog"], "severities": [1], "seed": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))

    command(folder, "dvc", "repro", "fusion", "distill@LF")
    asked = [request.path for request in server.requests]
    assert asked == ["/gone.tar.gz", "/c.tar.gz", "/c.tar.gz", "/teachers.tar"]
    assert server.requests[2].range == f"bytes={len(archive) // 2}-"
    assert json.loads((folder / "metrics/fusion.json").read_text()) == {}
    assert list(json.loads((folder / "metrics/train/LF.json").read_text())) == ["train_accuracy"]
    tested = json.loads((folder / "metrics/teacher.json").read_text())["test_accuracy"]

    edit(folder, "teacher.min_accuracy", 0.5)
    result = stage(folder, "stages.teacher")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"error: the teacher's accuracy on the test images is {tested:.4f}, teacher.min_accuracy is 0.5"
    )
    edit(folder, "dataset.archive", str(official["cifar10"]))
    result = stage(folder, "stages.prepare")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: dataset.archive, checked against dataset.sha256: ")
