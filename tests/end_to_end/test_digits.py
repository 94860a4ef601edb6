"""The real pipeline through the real `dvc repro`, on the smoke preset, in a temporary clone."""

import json
import shutil
from pathlib import Path

import pytest
from dvc.api import artifacts_show
from pipeline import (
    STUDENTS,
    clone,
    command,
    commit,
    edit,
    hashes,
    refusal,
    stage,
    stages_run,
    try_command,
)

import richkd

pytestmark = pytest.mark.slow


def test_everything_is_there(reproduced: Path) -> None:
    summary = json.loads((reproduced / "metrics/summary.json").read_text())
    assert set(summary) == {"teacher", "clip", "fused", *STUDENTS}
    assert (reproduced / "report/index.html").stat().st_size > 10_000
    record = json.loads((reproduced / "models/LF/seed1.json").read_text())
    assert record["seed"] == 1
    assert {"alpha": 0.4, "lam": 0.4}.items() <= record["params"]["fusion"].items()
    assert {"versions", "device", "data", "metrics"} <= set(record)
    assert richkd.load(reproduced / "models/LF", seed=1).temperature is not None
    assert len(hashes(reproduced)) == 2 * len(STUDENTS)
    assert [path.name for path in (reproduced / ".resume").iterdir()] == ["locks"]


def test_a_second_repro_runs_nothing(copy: Path) -> None:
    assert stages_run(command(copy, "dvc", "repro")) == set()


def test_a_fresh_clone_agrees_without_the_data(reproduced: Path, tmp_path: Path) -> None:
    """What `make check` relies on: the files in git tell whether they belong together."""
    folder = tmp_path / "clone"
    command(tmp_path, "git", "clone", "-q", str(reproduced), str(folder))
    dry = ["dvc", "repro", "--dry", "--allow-missing"]
    assert stages_run(command(folder, *dry)) == set()
    edit(folder, "calibration.bins", 7)
    stale = try_command(folder, *dry)
    assert stale.returncode != 0  # without data DVC cannot look further than `fusion`
    assert "failed to reproduce 'fusion'" in stale.stderr


def test_after_a_pull_there_is_nothing_to_do(copy: Path, tmp_path: Path) -> None:
    """A folder as the remote: push, a fresh clone, pull, and repro runs nothing."""
    (tmp_path / "remote").mkdir()
    command(copy, "dvc", "remote", "add", "-d", "storage", str(tmp_path / "remote"))
    commit(copy, "remote")
    command(copy, "dvc", "push")
    check_artifact(copy, tmp_path)
    folder = tmp_path / "clone"
    command(tmp_path, "git", "clone", "-q", str(copy), str(folder))
    assert not (folder / "cache").exists()
    command(folder, "dvc", "pull")
    output = command(folder, "dvc", "repro")
    assert stages_run(output) == set() and "Data and pipelines are up to date." in output
    assert command(folder, "git", "status", "--porcelain") == ""


def check_artifact(repository: Path, folder: Path) -> None:
    """A student with a version tag, as GTO names it, is fetched without a clone."""
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command(repository, "git", *who, "tag", "-a", "student-LF@v0.1.0", "-m", "released")
    wanted = ["student-LF", "--rev", "v0.1.0", "--out", "fetched"]
    command(folder, "dvc", "artifacts", "get", str(repository), *wanted)
    for path in (repository / "models/LF").iterdir():
        assert (folder / "fetched" / path.name).read_bytes() == path.read_bytes()
    shown = artifacts_show("student-LF", version="v0.1.0", repo=str(repository))
    assert shown["path"] == "models/LF" and shown["rev"]
    student = richkd.load(folder / "fetched")
    assert student.classes[2:4] == ["nineteen", "forty-two"] and student.image_size == 16


def test_another_lowest_accuracy_runs_only_the_teacher_again(copy: Path) -> None:
    """The weights stay the same, so nothing that depends on them runs."""
    edit(copy, "teacher.min_accuracy", 0.01)
    assert stages_run(command(copy, "dvc", "repro")) == {"code", "teacher", "report"}


# --- a table that does not belong to the params or to the data ------------------------------------


def test_a_table_of_other_views_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    edit(copy, "views.pad", 2)
    line = refusal(monkeypatch, "distill", "LF")
    assert line.startswith("error: cache/teacher was made with another set of views")


@pytest.mark.parametrize(
    ("key", "value", "remake", "says"),
    [
        ("teacher.seed", 5, "teacher", "cache/teacher was made with another teacher"),
        ("dataset.seed", 5, "prepare", "cache/teacher was made with another data set"),
        ("clip.prompts", ["a drawing of {}"], "clip", "cache/clip was made with another "),
        (
            "cache.clip",
            "all",
            "cache clip",
            "cache/fused/fused.json was made of another cache/clip",
        ),
    ],
)
def test_a_table_of_other_inputs_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, remake: str, says: str
) -> None:
    monkeypatch.chdir(copy)
    edit(copy, key, value)
    result = stage(copy, *f"stages.{remake}".split())
    assert result.returncode == 0, result.stderr
    assert refusal(monkeypatch, "distill", "LF").startswith(f"error: {says}")


# --- bad input: the stage `code` says so, and nothing else runs -----------------------------------

KD = {"teacher": "teacher", "kd": {"weight": 3.0, "temperature": 3.0}}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing ran."""
    return clone(tmp_path_factory.mktemp("fresh") / "clone")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("distill.variants", {"kd; touch x": KD}, "has the name 'kd; touch x': a name is a letter"),
        ("distill.variants.kd.cosine", {"weight": 1.0}, "kd.cosine is not a parameter"),
        ("distill.variants.LF.crd.weight", -0.1, "LF.crd.weight is -0.1: should be greater than"),
        ("student.lr", -1, "student.lr is -1: should be greater than 0"),
    ],
)
def test_with_bad_params_repro_runs_nothing_but_code(
    fresh: Path, key: str, value: object, says: str
) -> None:
    text = (fresh / "params.yaml").read_text()
    edit(fresh, key, value)
    check_refused(fresh, says)
    (fresh / "params.yaml").write_text(text)


def test_with_an_alias_in_params_repro_runs_nothing_but_code(fresh: Path) -> None:
    text = (fresh / "params.yaml").read_text()
    anchored = text.replace("    kd: {", "    kd: &kd {", 1)
    aliased = anchored.replace("\ncorruptions:", "    L: *kd\n\ncorruptions:")
    (fresh / "params.yaml").write_text(aliased)
    check_refused(fresh, "has the alias *kd: write the value out")
    (fresh / "params.yaml").write_text(text)


def check_refused(folder: Path, says: str) -> None:
    done = try_command(folder, "dvc", "repro")
    assert done.returncode != 0 and stages_run(done.stdout) == {"code"}
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: params.yaml: ") and says in line
    left = command(folder, "git", "status", "--porcelain", "--ignored", "-uall").splitlines()
    kept = ("__pycache__/", ".dvc/", ".resume/locks/")
    assert [x for x in left if not any(name in x for name in kept)] == [" M params.yaml"]


# --- other experiments ----------------------------------------------------------------------------


def test_without_variants_only_ce_is_trained(copy: Path) -> None:
    shutil.rmtree(copy / "models/ce")
    edit(copy, "distill.variants", {})
    edit(copy, "student.epochs", 1)
    ran = stages_run(command(copy, "dvc", "repro"))
    assert ran == {"code", "alone", "evaluate_reference@ce", "calibrate_reference@ce", "report"}
    summary = json.loads((copy / "metrics/summary.json").read_text())
    assert set(summary) == {"teacher", "clip", "fused", "ce"}


def test_a_loss_of_ones_own(copy: Path) -> None:
    """A file, a line and a class, as CONTRIBUTING.md says. No other student trains again."""
    before = hashes(copy)
    (copy / "richkd/losses/cosine.py").write_text(
        '"""The cosine between logits."""\n\n'
        "from torch import Tensor\n"
        "from torch.nn import functional\n\n\n"
        "def cosine(student: Tensor, teacher: Tensor) -> Tensor:\n"
        "    return 1 - functional.cosine_similarity(student, teacher).mean()\n"
    )
    terms, sections = copy / "richkd/losses/terms.py", copy / "richkd/params/students.py"
    terms.write_text(insert(terms, '    "kd": "logits",\n', '    "cosine": "logits",\n'))
    text = '@section\nclass Cosine(Term):\n    """The cosine between logits."""\n\n\n'
    sections.write_text(insert(sections, "@section\nclass Kd(Term):\n", text))
    edit(copy, "distill.variants.mine", {"teacher": "fused", "cosine": {"weight": 1.0}})

    assert stages_run(command(copy, "dvc", "repro", "distill@mine")) == {"code", "distill@mine"}
    assert (copy / "models/mine/seed0.safetensors").exists()
    columns = (copy / "metrics/curves/mine.csv").read_text().splitlines()[0].split(",")
    assert "cosine" in columns and "kd" not in columns
    follow = {"evaluate@mine", "calibrate@mine", "report"}
    assert stages_run(command(copy, "dvc", "repro")) == follow
    after = hashes(copy)
    assert {path: after[path] for path in before} == before


def insert(path: Path, where: str, text: str) -> str:
    """The file's text with more text before a place that it has once."""
    content = path.read_text()
    assert content.count(where) == 1
    return content.replace(where, text + where)
