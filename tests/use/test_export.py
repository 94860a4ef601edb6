"""An exported file answers as the network does, and says what it is; else there is no file."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from finished import CLASSES, CPU, LOOK, noise, request, save_run, save_student
from PIL import Image
from scipy.special import softmax

from richkd import models
from richkd.base.errors import InputError
from richkd.base.files import fingerprint
from richkd.data.dataset import load_split
from richkd.data.resident import normalise
from richkd.data.views import Center
from richkd.evaluate import calibration
from richkd.use import export as module
from richkd.use.answers import Description
from richkd.use.export import OPSET, check, describe, export, open_runner, spread
from richkd.use.onnx_file import OnnxStudent
from richkd.use.packaged import Packaged
from richkd.use.quantize import quantize
from richkd.use.student import find, load


def expected_answers(root, pixels):
    """Logits and probabilities of the saved network, without what export does around it."""
    student = load(root / "models/LF")
    with torch.no_grad():
        logits = student.model(normalise(torch.from_numpy(pixels).float(), LOOK)).logits
    return logits, (logits / student.temperature).softmax(1)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [1, 7])
def test_an_onnx_file_answers_as_the_network_for_any_number_of_images(exported, finished, images):
    pixels = noise((images, 3, 8, 8), seed=images)
    assert_close(OnnxStudent(exported).run(pixels), expected_answers(finished, pixels))


def test_an_onnx_file_says_what_it_is(exported, finished):
    about = OnnxStudent(exported).description
    record = json.loads((finished / "models/LF/seed0.json").read_text())
    logits = np.load(finished / "predictions/LF/test.npy")[0]
    labels = load_split(finished / "data/test.safetensors").labels
    temperature = calibration.fit_temperature(logits, labels)
    probabilities = softmax(logits.astype(float) / temperature, axis=1)
    assert about._replace(provenance={}) == Description(
        name="LF",
        arch="resnet8",
        classes=CLASSES,
        preprocessing={
            "pixels": "uint8", "mean": LOOK.mean, "std": LOOK.std, "center": None, "image_size": 8,
        },
        temperature=pytest.approx(temperature),
        metrics={
            "images": 22,
            "top1": (logits.argmax(1) == labels).mean(),
            "ece": pytest.approx(calibration.expected_calibration_error(probabilities, labels)),
            "nll": pytest.approx(calibration.negative_log_likelihood(probabilities, labels)),
        },
        license="Apache-2.0",
        provenance={},
    )  # fmt: skip
    source = about.provenance
    assert source["teacher"] == "fused" and source["data_set"] == "toy" and source["seed"] == 0
    assert source["params"] == record["params"]
    assert source["params_sha256"] == fingerprint(record["params"])
    assert [entry.version for entry in onnx.load(exported).opset_import] == [OPSET]


def test_the_commit_is_the_one_of_the_models_checkout(run):
    from pipeline import command, commit

    (run / "params.yaml").write_text("seed: 0\n")
    command(run, "git", "init", "-q")
    commit(run, "models")
    path = find(run / "models/LF", None)
    source = describe(path, load(run / "models/LF"), "uint8").provenance
    assert source["commit"] == command(run, "git", "rev-parse", "HEAD").strip()
    (run / "params.yaml").write_text("seed: 1\n")
    assert describe(path, load(run / "models/LF"), "uint8").provenance["commit"].endswith("-dirty")


def test_pt2_of_float_pixels_and_its_metadata(run):
    path = export(request(run, "pt2", pixels="float32"))
    images = noise((3, 3, 8, 8))
    given = images.astype(np.float32) / 255
    assert_close(open_runner("pt2", path)(given), expected_answers(run, images))
    extra = dict.fromkeys(Description._fields, "")
    with open(path, "rb") as file:
        torch.export.load(file, extra_files=extra)
    assert (
        Description.of_metadata(
            {k: x if isinstance(x, str) else x.decode() for k, x in extra.items()}, path
        ).classes
        == CLASSES
    )


def test_safetensors_and_its_card(run, capsys):
    path = export(request(run, "safetensors"))
    assert path.as_posix() == "export/LF-seed0/model.safetensors"
    one, other = load(run / "models/LF"), load(path)
    state = other.model.state_dict()
    assert all(torch.equal(state[name], x) for name, x in one.model.state_dict().items())
    assert (other.classes, other.image_size) == (CLASSES, 8)
    assert other.preprocessing == one.preprocessing and other.temperature == one.temperature
    card = path.with_name("README.md").read_text()
    metrics = describe(find(run / "models/LF", 0), one, "uint8").metrics
    for text in (
        "license: apache-2.0\n",
        "A resnet8, student of the teacher `fused`.",
        "the 4 classes of the data set `toy`: dark, dim, bright, white.",
        f"| top-1 | {metrics['top1']:.1%} |",
        f"softmax(logits / {one.temperature:.4g})",
        'richkd.load("model.safetensors")',
    ):
        assert text in card
    size = path.stat().st_size / 1e6
    assert re.search(
        rf"^export/LF-seed0/model.safetensors: {size:.2f} MB, at most ", capsys.readouterr().out
    )
    export(request(run, "safetensors"))  # again


def test_a_network_for_cut_images_takes_any_size(run, tmp_path):
    """One file takes images of two sizes, and cuts them as the pipeline does."""
    look = LOOK._replace(center=Center(12, 8))
    save_student(run / "models/LF/seed0", look=look)
    student = load(run / "models/LF")
    about = describe(find(run / "models/LF", 0), student, "uint8")
    packaged = Packaged(student.model, look, student.temperature).eval()
    module.write("pt2", packaged, about, tmp_path / "cut.pt2")
    answers = open_runner("pt2", tmp_path / "cut.pt2")
    for height, width in ((40, 23), (9, 12)):
        pixels = noise((2, 3, height, width))
        with torch.no_grad():
            expected = packaged(torch.from_numpy(pixels))
        assert_close(answers(pixels), expected)


def test_int8_is_measured_beside_float(exported, finished, tmp_path, capsys):
    from shutil import copy

    path = tmp_path / "LF.onnx"
    copy(exported, path)
    output = quantize(path, finished / "data")
    assert output == tmp_path / "LF-int8.onnx"
    graph = onnx.load(output).graph
    weights = [
        x for x in graph.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) == 4
    ]
    assert len(weights) == sum(node.op_type == "Conv" for node in graph.node)
    assert all(np.abs(onnx.numpy_helper.to_array(x)).max() <= 64 for x in weights)
    scales = {x.name: x for x in graph.initializer}
    channels = [x.dims[0] for x in weights]
    assert [
        scales[f"{x.name.removesuffix('_quantized')}_scale"].dims[0] for x in weights
    ] == channels
    quantised = OnnxStudent(output)
    assert quantised.description == OnnxStudent(path).description
    pixels = load_split(finished / "data/test.safetensors").images.transpose(0, 3, 1, 2)
    logits, float_logits = quantised.run(pixels)[0], OnnxStudent(path).run(pixels)[0]
    spread_of_logits = np.ptp(float_logits)
    assert 0 < np.abs(logits - float_logits).max() < 0.2 * spread_of_logits
    lines = capsys.readouterr().out.splitlines()
    labels = load_split(finished / "data/test.safetensors").labels
    for line, found in zip(lines[-2:], (float_logits, logits)):
        assert f" {100 * (found.argmax(1) == labels).mean():.2f} " in line


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logits, probabilities: (logits + 2e-4, probabilities),
        lambda logits, probabilities: (logits, probabilities * 1.001),
        lambda logits, probabilities: (logits * np.nan, probabilities),
        lambda logits, probabilities: (logits[:, ::-1], probabilities[:, ::-1]),
    ],
)
def test_a_file_that_answers_otherwise_is_refused(finished, wrong):
    student = load(finished / "models/LF")
    about = describe(find(finished / "models/LF", 0), student, "uint8")
    packaged = Packaged(student.model, student.preprocessing, student.temperature).eval()

    @torch.inference_mode()
    def run(pixels):
        return tuple(x.numpy() for x in packaged(torch.from_numpy(pixels)))

    test = load_split(finished / "data/test.safetensors")
    assert "on 22 test images" in check(run, student, test, about, "x.onnx")
    with pytest.raises(InputError, match="x.onnx is not kept: on 22 test images it differs"):
        check(lambda pixels: wrong(*run(pixels)), student, test, about, "x.onnx")


def test_no_file_is_left_of_a_network_that_rounds_too_much(run):
    """Logits of a million are not the same to 1e-4 in another order of the sums."""
    network = models.create("resnet8", 4)
    network.load_state_dict(load("models/LF").model.state_dict())
    from richkd.classifiers import Loaded, save_classifier

    with torch.no_grad():
        network.fc.weight *= 1e7
    save_classifier(
        "models/LF/seed0", Loaded(network, LOOK), CPU,
        arch="resnet8", num_classes=4, classes=CLASSES, image_size=8,
    )  # fmt: skip
    with pytest.raises(InputError, match="is not kept: on 22 test images it differs"):
        export(request(run, "safetensors"))
    assert [*run.glob("export/*/*")] == []


@pytest.mark.parametrize(
    ("to", "output", "says"),
    [
        ("onnx", "LF.pt2", "--output is LF.pt2: must end in .onnx"),
        ("pt2", "LF", "--output is LF: must end in .pt2"),
        ("safetensors", ".", "README.md is not a model card"),
    ],
)
def test_another_file_is_not_replaced(run, to, output, says):
    (run / "README.md").write_text("mine")
    from pathlib import Path

    with pytest.raises(InputError, match=says):
        export(request(run, to, output=Path(output)))
    assert (run / "README.md").read_text() == "mine"


def test_missing_packages_are_named(run, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("onnx", "onnx_of_no_one"))
    with pytest.raises(
        InputError, match=r"export needs onnx_of_no_one: pip install -e '.\[export\]'"
    ):
        export(request(run))


def test_an_exported_model_that_does_not_run_is_no_error_of_writing(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(module, "check", broken)
    with pytest.raises(
        InputError, match="LF-seed0.pt2: the exported model does not run: no kernel"
    ):
        export(request(run, "pt2"))
    assert not list((run / "export").iterdir())


def test_without_saved_answers_there_are_no_metrics(run):
    (run / "predictions/LF/test.npy").unlink()
    with pytest.raises(InputError, match="no predictions/LF/test.npy or no data/test.safetensors"):
        export(request(run, "pt2"))


def test_a_network_that_torch_cannot_trace_is_one_line(run, tmp_path):
    student = load(run / "models/LF")
    about = describe(find(run / "models/LF", 0), student, "uint8")

    class Stubborn(torch.nn.Module):
        def forward(self, pixels):
            return pixels[: int(pixels.float().sum())]

    with pytest.raises(InputError, match="^resnet8 cannot be exported: "):
        module.write("pt2", Stubborn(), about, tmp_path / "x.pt2")


def test_images_are_spread_over_the_set(split):
    assert spread(split, 100) == [*range(22)]
    assert spread(split, 4) == [0, 7, 14, 21]


def test_a_network_of_timm_for_another_size_of_image_loads_again(here, split):
    larger = split._replace(images=split.images.repeat(2, 1).repeat(2, 2))
    save_run(here, larger, arch="timm/test_vit", img_size=16, size=16)
    path = export(request(here, "safetensors"))
    exported, student = load(path), load(here / "models/LF")
    image = Image.new("RGB", (16, 16), "teal")
    assert exported.predict([image]) == student.predict([image])
