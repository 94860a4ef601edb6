"""The pipeline on image files in ImageNet's folders: whole, in two processes, killed."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import small_imagenet
import trees
import yaml
from pipeline import ENVIRONMENT, clone, command, content, kill, stage, started
from timm.data import ImageNetInfo

pytestmark = pytest.mark.slow
TORCHRUN = "torchrun --standalone --nproc-per-node 2 --local-addr 127.0.0.1"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after `dvc repro`, in which one process with one thread ran each stage."""
    base = tmp_path_factory.mktemp("imagenet")
    tree = trees.imagenet(base / "tree")
    trees.corrupted(base / "imagenet-c", tree, ["gaussian_noise", "fog"], [3], 48)
    number = {wnid: str(i) for i, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    trees.shifted(base / "v2", {number[wnid]: i for i, wnid in enumerate(trees.WNIDS)} | {"999": 0})
    trees.shifted(base / "r", {wnid: i for i, wnid in enumerate(trees.WNIDS[:7])})
    folder = clone(base / "clone")
    params = small_imagenet.params(tree, small_imagenet.random_teacher(base / "teacher.pt"))
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "OMP_NUM_THREADS", "1")
        command(folder, "dvc", "repro")
    return folder


@pytest.fixture
def copy(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which stages can run again, with one thread for each process."""
    for name, value in (("OMP_NUM_THREADS", "1"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setitem(ENVIRONMENT, name, value)
    return Path(shutil.copytree(alone, tmp_path / "copy"))


def scores(folder: Path, model: str) -> list[Any]:
    paths = [folder / f"metrics/{name}/{model}.json" for name in ("train", "evaluate", "calibrate")]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def numbers(values: Any) -> list[float]:
    """All numbers but the fitted temperature, which is arbitrary for so weak a student."""
    if isinstance(values, dict):
        return numbers([x for name, x in values.items() if name != "temperature"])
    if isinstance(values, list):
        return [x for part in values for x in numbers(part)]
    return [values]


def test_from_files_to_report(alone: Path) -> None:
    info = json.loads((alone / "data/info.json").read_text())
    assert info["folders"] == trees.WNIDS and info["classes"][0] == "tench"
    assert info["unreadable"] == ["train/n01440764/n01440764_4.JPEG"]
    summary = json.loads((alone / "metrics/summary.json").read_text())
    assert set(summary) == {"teacher", "clip", "fused", "ce", "kd", "LF"}
    results = pd.read_csv(alone / "metrics/results.csv")
    found = {"top1", "corrupted_ece", "aurc", "shifted_imagenet_v2", "shifted_imagenet_r"}
    for model in summary:
        metrics = set(results[results.model == model].metric)
        assert found <= metrics
        assert "shifted_imagenet_a" not in metrics
        assert "mce" not in metrics  # two corruptions and one severity are not the benchmark
    assert summary["clip"]["top1"] > 0.15  # chance is 0.05
    page = (alone / "report/index.html").read_text()
    assert "imagenet_v2" in page and "imagenet_a was not run: nothing is at" in page
    assert "published ImageNet-C" in page and "n01440764_4.JPEG" in page
    teacher = json.loads((alone / "models/teacher/seed0.json").read_text())
    assert teacher["arch"] == "timm/test_resnet" and teacher["mean"] == [0.5] * 3
    cut = {"resize": 168, "size": 160, "interpolation": "bilinear"}  # timm's, not the params'
    assert teacher["center"] == cut | {"resize_mode": "shortest", "fill": 0}
    tables = {path.name for path in (alone / "cache/teacher").iterdir()}
    assert tables == {"cache.json", "validation.npy"}  # an online teacher has no table


def test_two_processes_give_the_same_and_go_on_when_one_dies(
    alone: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RICHKD_LAUNCH", f"{TORCHRUN} --max-restarts 1")
    for made, *words in (
        ("data", "stages.prepare"),
        ("cache/clip", "stages.cache", "clip"),
        ("predictions/clip", "stages.evaluate", "clip"),
    ):
        result = stage(copy, *words)
        assert result.returncode == 0, result.stderr
        assert content(copy / made) == content(alone / made)

    run = started(copy, "LF-seed0.pt", "python", "-m", "stages.distill", "LF")
    (victim,) = (x for x in psutil.Process(run.pid).children() if x.environ()["RANK"] == "1")
    victim.kill()
    code, log = run.wait(timeout=120), (copy / "log").read_text()
    assert code == 0, log  # torchrun started both again
    assert "continuing from .resume/LF-seed0.pt" in log
    for words in (["stages.evaluate", "LF"], ["stages.calibrate", "LF"]):
        assert stage(copy, *words).returncode == 0
    assert numbers(scores(copy, "LF")) == pytest.approx(numbers(scores(alone, "LF")), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "made", "sign"),
    [
        (["stages.cache", "clip"], "cache/clip", "cache-clip/done"),
        (["stages.distill", "LF"], "models/LF", "LF-seed0.pt"),
    ],
)
def test_killed_at_random_it_goes_on_to_the_same_end(
    alone: Path, copy: Path, words: list[str], made: str, sign: str
) -> None:
    shutil.rmtree(copy / made)
    run = started(copy, sign, "python", "-m", *words)
    time.sleep(random.uniform(0, 0.2))
    kill(run)
    assert not (copy / made).exists()
    result = stage(copy, *words)
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stdout
    assert content(copy / made) == content(alone / made)
