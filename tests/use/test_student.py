"""`richkd.load`: a model for use, from its folder alone or with its temperature."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from finished import CLASSES, LOOK, edit_record, noise, save_student
from PIL import Image

import richkd
from richkd.base.errors import InputError
from richkd.data.dataset import load_split
from richkd.data.imagesets import cut_center
from richkd.data.resident import normalise
from richkd.data.views import Center
from richkd.evaluate.calibration import fit_temperature


def test_a_loaded_student(finished, split):
    student = richkd.load(finished / "models/LF")
    assert student.classes == CLASSES and not student.model.training
    image = Image.fromarray(split.images[0])
    expected = normalise(torch.from_numpy(split.images[:1]).permute(0, 3, 1, 2).float(), LOOK)[0]
    torch.testing.assert_close(student.preprocess(image), expected)
    validation = load_split(finished / "data/validation.safetensors").labels
    logits = np.load(finished / "predictions/LF/validation.npy")[0]
    assert student.temperature == pytest.approx(fit_temperature(logits, validation))

    (answers,) = student.predict([image], top=4)
    probabilities = torch.tensor(logits[0] / student.temperature).softmax(0)
    assert {x.name: x.probability for x in answers} == pytest.approx(
        dict(zip(CLASSES, probabilities.tolist())), abs=1e-5
    )
    assert [x.probability for x in answers] == sorted(
        (x.probability for x in answers), reverse=True
    )


def test_more_images_than_a_batch(finished, split):
    student = richkd.load(finished / "models/LF")
    images = [Image.fromarray(x) for x in split.images] * 4
    answers = student.predict(images, top=1)
    assert len(answers) == 88
    assert [x[0].name for x in answers[:22]] == [x[0].name for x in answers[66:]]


def test_an_image_of_another_size_is_resized_and_its_middle_taken(finished):
    student = richkd.load(finished / "models/LF")
    pixels = torch.from_numpy(noise((16, 48, 3))).permute(2, 0, 1)
    expected = normalise(cut_center(pixels, Center(8, 8))[None].float(), LOOK)[0]
    found = student.preprocess(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    # PIL and torch round to levels that differ by one at most.
    torch.testing.assert_close(found, expected, rtol=0, atol=1.1 / 255 / 0.2)


def test_a_file_is_cut_as_its_network_wants(run):
    save_student(run / "models/LF/seed0", look=LOOK._replace(center=Center(12, 8)))
    Image.fromarray(noise((40, 60, 3))).save("image.png")
    assert richkd.load("models/LF").preprocess("image.png").shape == (3, 8, 8)


def test_a_seed_by_choice(run):
    together = ["seed0", "seed1"]
    save_student(run / "models/LF/seed1")
    for name in together:
        edit_record(run / f"models/LF/{name}.json", saved_together=together)
    logits = np.load("predictions/LF/validation.npy")
    np.save("predictions/LF/validation.npy", np.concatenate([logits, 3 * logits]))
    temperature = richkd.load("models/LF").temperature
    assert richkd.load("models/LF", seed=1).temperature == pytest.approx(3 * temperature)
    with pytest.raises(InputError, match="models/LF has no seed 2: must be one of 0, 1"):
        richkd.load("models/LF", seed=2)


def test_the_folder_one_stands_in(run, monkeypatch):
    temperature = richkd.load("models/LF").temperature
    monkeypatch.chdir("models/LF")
    assert richkd.load(".").temperature == temperature is not None


def test_logits_of_other_data_are_named(run):
    np.save("predictions/LF/validation.npy", np.zeros((1, 3, 4), np.float32))
    with pytest.raises(
        InputError, match="validation.npy holds .* if data/ was made anew since, run"
    ):
        richkd.load("models/LF")


def test_a_checkout_named_richkd_does_not_hide_the_package(tmp_path):
    (tmp_path / "richkd").mkdir()
    words = [sys.executable, "-c", "import richkd; print(richkd.load.__name__)"]
    assert subprocess.check_output(words, cwd=tmp_path, text=True) == "load\n"


def test_a_way_through_another_folder_is_the_same_model(run):
    (run / "models/L").mkdir()
    temperature = richkd.load("models/L/../LF").temperature
    assert temperature == richkd.load("models/LF").temperature is not None


def test_a_folder_alone_has_no_temperature(run):
    (run / "models/LF").rename("downloaded")
    student = richkd.load("downloaded")
    assert student.temperature is None and student.classes == CLASSES
    assert student.predict([Image.new("RGB", (8, 8))])[0][0].name in CLASSES


@pytest.mark.parametrize("missing", ["classes", "image_size"])
def test_an_older_record_is_refused(run, missing):
    edit_record(run / "models/LF/seed0.json", **{missing: None})
    with pytest.raises(InputError, match="seed0.json has no class names or image size: run `dvc"):
        richkd.load("models/LF")


def test_clip_is_refused(run):
    record = {
        "kind": "clip",
        "model": "RN50",
        "quick_gelu": True,
        "embed_dim": 4,
        "input": {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "fill": 0}
        | {"interpolation": "bicubic", "resize_mode": "shortest"},
        "classes": CLASSES,
        "prompts": ["{}"],
        "scale": 1.0,
    }
    edit_record(run / "models/LF/seed0.json", **record)
    with pytest.raises(InputError, match="^models/LF is CLIP: name a student or the teacher"):
        richkd.load("models/LF")


def test_no_folder_of_models(here):
    with pytest.raises(InputError, match="^nothing is not a folder of models: name one such as"):
        richkd.load("nothing")


def test_import_richkd_is_light():
    code = "import richkd, sys; print({'torch', 'numpy', 'pydantic'} & {*sys.modules}, richkd.load)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.startswith("set() <function load")
