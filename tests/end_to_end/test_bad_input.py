"""Bad input ends a stage with one line and exit code 1, before any work."""

import shutil
from pathlib import Path

import pytest
from pipeline import ENVIRONMENT, REPOSITORY, edit, refusal, stage


@pytest.fixture
def smoke(here: Path) -> Path:
    """A folder with nothing but the smoke preset's params.yaml."""
    shutil.copy(REPOSITORY / "presets/smoke.yaml", here / "params.yaml")
    return here


def test_bad_params_end_a_process_with_one_line_and_exit_code_1(
    smoke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(REPOSITORY))
    edit(smoke, "student.lr", "fast")
    result = stage(smoke, "stages.prepare")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == "error: params.yaml: student.lr is 'fast': should be a valid number\n"


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("code", "fusion.alpha", 1.5, "fusion.alpha is 1.5: should be less than or equal to 1"),
        ("code", "fusion.alhpa", 0.5, "fusion.alhpa is not a parameter: did you mean alpha?"),
        ("code", "distill.variants", ["LF"], "distill.variants is ['LF']: should be an object"),
        ("code", "dataset.classes", [], "dataset.classes is []"),
        ("code", "dataset.classes", ["one", "eleventy"], "dataset.classes has 'eleventy'"),
        (
            "code",
            "student.arch",
            "torchvision/resnet180",
            "student.arch: model 'torchvision/resnet180' is unknown: torchvision has resnet18, ",
        ),
        (
            "code",
            "student.arch",
            "timm/vit_tiny_patch16_224",
            "student.arch: model 'timm/vit_tiny_patch16_224' does not take images of 16 x 16 pix",
        ),
        (
            "code",
            "dataset.test_images",
            5,
            "dataset.test_images is 5: must be at least 6, one for each class",
        ),
        (
            "code",
            "student.epochs",
            -3,
            "student.epochs is -3: should be greater than or equal to 1",
        ),
    ],
)
def test_wrong_params_are_one_line(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, value: object, says: str
) -> None:
    edit(smoke, key, value)
    assert says in refusal(monkeypatch, name)
    assert {path.name for path in smoke.iterdir()} <= {"params.yaml", ".resume"}
    assert not [path for path in smoke.glob(".resume/*") if path.name != "locks"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["calibrate", "LX"],
            "error: called with LX: name one of teacher, clip, fused, ce, kd, LF",
        ),
        (["calibrate"], "error: called with nothing: name one of teacher, clip, fused, ce, kd, LF"),
        (["distill", "ce"], "error: called with ce: name one of kd, LF"),
        (["prepare", "now"], "error: called with now: takes no word"),
    ],
)
def test_wrong_words_are_one_line(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    assert refusal(monkeypatch, *words) == says


@pytest.mark.parametrize("value", ["two", "0"])
def test_a_wrong_number_of_processes_is_one_line(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RICHKD_PROCESSES", value)
    says = f"error: RICHKD_PROCESSES is {value!r}: must be a number of processes, 1 to 9999"
    assert refusal(monkeypatch, "distill", "LF") == says


@pytest.mark.parametrize("name", ["RICHKD_PROCESSES", "RICHKD_LAUNCH"])
def test_before_several_processes_start_wrong_params_are_one_line(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "2")
    edit(smoke, "student.batch_size", -1)
    says = "error: params.yaml: student.batch_size is -1: should be greater than or equal to 2"
    assert refusal(monkeypatch, "alone") == says


@pytest.mark.parametrize(("name", "processes"), [("alone", "2"), ("teacher", "1")])
def test_a_network_that_timm_lacks_is_one_line_before_any_work(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, name: str, processes: str
) -> None:
    """Also where the stage `code` ran on another machine, with another timm."""
    monkeypatch.setenv("RICHKD_PROCESSES", processes)
    edit(smoke, "student.arch", "timm/resnet19")
    says = "error: params.yaml: student.arch: model 'timm/resnet19' is unknown: timm has resnet18, "
    assert refusal(monkeypatch, name).startswith(says)


@pytest.mark.parametrize("command", ["torchrun 'open", " "])
def test_a_launcher_that_is_no_command_is_one_line(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RICHKD_LAUNCH", command)
    says = f"error: RICHKD_LAUNCH is {command!r}: must be a command"
    assert refusal(monkeypatch, "distill", "LF") == says
