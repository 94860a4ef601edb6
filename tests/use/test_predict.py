"""`python -m richkd predict`: tables and JSON, bad images, and no torch where ONNX is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finished import CLASSES, noise
from PIL import Image

import richkd
from richkd import __main__
from richkd.data.image_names import SUFFIXES
from richkd.use.onnx_file import OnnxStudent

ROOT = Path(__file__).parents[2]
# All that ONNX files must not need.
BLOCKED = (
    "torch torchvision pydantic yaml ruamel tqdm safetensors scipy pandas psutil sklearn onnx dvc"
).split()
SCRIPT = f"""
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
runpy.run_module("richkd", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def images(here):
    """Three formats, one in a folder below; a hidden file, a thumbnail, one of another kind."""
    (here / "images/more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.webp")):
        Image.fromarray(noise((20, 30, 3), number)).save(here / "images" / name)
    (here / "images/.hidden.png").write_bytes(b"")
    (here / "images/@eaDir").mkdir()
    (here / "images/@eaDir/a.png").write_bytes(b"")
    (here / "images/notes.txt").write_text("notes")
    return here / "images"


def predict(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["richkd", "predict", *map(str, words)])
    code = 0
    try:
        __main__.main()
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_without_torch_and_all_else(exported, images):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "predict", exported, "images", "--json"],
        cwd=images.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    left_out = f"images: 1 files are not {', '.join(SUFFIXES)}\n"
    assert (done.returncode, done.stderr) == (0, left_out)
    entries = json.loads(done.stdout)
    names = ["images/a.png", "images/b.jpg", "images/more/c.webp"]
    assert [entry["image"] for entry in entries] == names
    student = OnnxStudent(exported)
    for entry in entries:
        (answers,) = student.predict([images.parent / entry["image"]])
        assert entry["classes"] == [
            {"class": x.name, "probability": x.probability} for x in answers
        ]
        assert sum(x.probability for x in answers) == pytest.approx(1, abs=1e-5)


def test_the_folder_and_the_file_answer_alike(exported, finished, images):
    files = [images / "a.png", images / "b.jpg", images / "more/c.webp"]
    one, other = (
        richkd.load(finished / "models/LF").predict(files),
        OnnxStudent(exported).predict(files),
    )
    for left, right in zip(one, other, strict=True):
        assert [x.name for x in left] == [x.name for x in right]
        assert [x.probability for x in left] == pytest.approx(
            [x.probability for x in right], abs=1e-4
        )


def test_a_table(finished, images, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    code, out, _ = predict(monkeypatch, capsys, finished / "models/LF", "images/a.png")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "image         probability  class" and len(lines) == 5
    (answers,) = richkd.load(finished / "models/LF").predict(["images/a.png"])
    assert lines[1] == f"images/a.png  {100 * answers[0].probability:9.2f} %  {answers[0].name}"
    assert {line.split()[-1] for line in lines[1:]} == {*CLASSES}


def test_bad_images_are_a_line_each_and_the_others_are_answered(
    finished, images, monkeypatch, capsys
):
    (images / "d.png").write_bytes((images / "a.png").read_bytes()[:50])
    words = ["images", "nothing.png", "images/notes.txt", "images/a.png", "--json"]
    code, out, err = predict(monkeypatch, capsys, finished / "models/LF", *words)
    assert code == 1 and len(json.loads(out)) == 3
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    for line, start in zip(
        errors, ("images/d.png cannot be", "nothing.png is not there", "images/notes.txt cannot be")
    ):
        assert line.startswith(f"error: {start}")


def test_without_an_answer_there_is_no_table(finished, images, monkeypatch, capsys):
    code, out, err = predict(monkeypatch, capsys, finished / "models/LF", "nothing.png")
    assert code == 1 and out == "" and err == "error: nothing.png is not there\n"


def test_probabilities_that_are_not_calibrated_are_told(finished, images, monkeypatch, capsys):
    import shutil

    shutil.copytree(finished / "models/LF", "alone")
    _, _, err = predict(monkeypatch, capsys, "alone", "images/a.png")
    assert err == "alone: probabilities are not calibrated, since no temperature was fitted\n"


@pytest.mark.parametrize(
    ("model", "content", "says"),
    [
        ("no.onnx", None, "no.onnx is not there"),
        ("bad.onnx", b"nothing", "bad.onnx is not a complete ONNX file: "),
        ("none", None, "none is not a folder of models: name one such as models/LF"),
    ],
)
def test_no_model(images, monkeypatch, capsys, model, content, says):
    if content:
        Path(model).write_bytes(content)
    code, out, _ = predict(monkeypatch, capsys, model, "images/a.png")
    assert code.startswith(f"error: {says}") and out == ""


def test_a_folder_without_images(exported, images, monkeypatch, capsys):
    (images / "empty").mkdir()
    code, _, _ = predict(monkeypatch, capsys, exported, "images/empty")
    assert code == f"error: images/empty holds no image: must be {', '.join(SUFFIXES)}"


def test_an_onnx_file_of_another_program(exported, images, monkeypatch, capsys):
    import onnx

    foreign = onnx.load(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, "foreign.onnx")
    code, _, _ = predict(monkeypatch, capsys, "foreign.onnx", "images/a.png")
    assert code == (
        "error: foreign.onnx has no description of its model: must be written by "
        "`python -m richkd export`"
    )
