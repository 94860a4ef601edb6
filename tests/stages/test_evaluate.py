"""The stages `evaluate` and `calibrate` on a student that diverged, and the fused teacher's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from richkd import models
from richkd.base.errors import InputError
from richkd.base.files import write_array, write_json
from richkd.classifiers import Loaded, save_classifier
from richkd.data.dataset import (
    CORRUPTED,
    Info,
    Manifest,
    Split,
    load_split,
    save_info,
    save_split,
)
from richkd.data.imagesets import cut_center
from richkd.data.resident import normalise
from richkd.data.views import Center, Preprocessing
from richkd.teachers.fusion import Recipe
from stages import calibrate, evaluate, evaluate_fused

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LOOK = Preprocessing([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
PARTS = ("validation", "test", "corrupted")


@pytest.fixture
def images(here):
    """Params, and images of four classes: two corruptions of one severity, no shifted sets."""
    preset = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
    preset["runtime"] |= {"device": "cpu", "precision": "fp32"}
    sets = {"source": "generate", "seed": 0, "names": ["fog", "snow"], "severities": [3]}
    Path("params.yaml").write_text(yaml.safe_dump(preset | {"corruptions": sets}))
    rng = np.random.default_rng(0)
    for name, count in (("validation", 8), ("test", 20)):
        pixels = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        save_split(f"data/{name}.safetensors", Split(pixels, np.arange(count) % 4))
    for name in sets["names"]:
        pixels = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
        write_array(CORRUPTED / f"{name}.npy", pixels)
    save_info(
        "data/info.json", Info(name="cifar100", classes=list("abcd"), mean=[0.5] * 3, std=[0.2] * 3)
    )
    write_json("data/shifted/sets.json", {})


def save_students(name, *factors):
    """A network a factor, whose logits are so many times as large as they were."""
    together = [f"seed{seed}" for seed in range(len(factors))]
    for seed, factor in enumerate(factors):
        torch.manual_seed(seed)
        model = models.create("resnet8", 4)
        with torch.no_grad():
            for parameter in model.fc.parameters():
                parameter *= factor
        save_classifier(
            f"models/{name}/seed{seed}",
            Loaded(model, LOOK),
            CPU,
            arch="resnet8",
            num_classes=4,
            saved_together=together,
        )


def saved(name):
    return {part: np.load(f"predictions/{name}/{part}.npy") for part in PARTS}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e7, 1e38])
def test_a_student_that_diverged_is_named_and_its_logits_are_finite(images, capsys, factor):
    save_students("LF", 1.0)
    evaluate.main("LF")
    assert "diverged" not in capsys.readouterr().out
    kept = saved("LF")
    save_students("LF", 1.0, factor)
    evaluate.main("LF")
    lines = [line for line in capsys.readouterr().out.splitlines() if "diverged" in line]
    logits = saved("LF")
    assert [array.dtype for array in logits.values()] == [np.float32, np.float32, np.float16]
    assert all(np.isfinite(array).all() for array in logits.values())
    assert (logits["corrupted"] == -65504).any()
    assert len(lines) == 1 and lines[0].startswith("LF diverged: ")
    for part, array in kept.items():
        np.testing.assert_array_equal(array[0], logits[part][0])
    calibrate.main("LF")
    figures = json.loads(Path("metrics/calibrate/LF.json").read_text())
    assert np.isfinite(list(figures["corrupted"]["nll"].values())).all()


def test_clipped_logits_still_have_their_answer(images):
    save_students("LF", 1.0)
    evaluate.main("LF")
    sane = json.loads(Path("metrics/evaluate/LF.json").read_text())
    save_students("LF", 1e7)
    evaluate.main("LF")
    assert json.loads(Path("metrics/evaluate/LF.json").read_text()) == sane


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_the_fused_logits_of_clipped_ones_are_finite(images, alpha):
    for name in ("teacher", "clip"):
        save_students(name, 1e38)
        evaluate.main(name)
    both = {"teacher": 1.0, "clip": 1.0}
    Recipe(alpha, 0.5, both, dict.fromkeys(both, "0" * 64)).save()
    evaluate_fused.main()
    assert all(np.isfinite(array).all() for array in saved("fused").values())
    assert (saved("fused")["corrupted"].max(-1) == 0).all()


def test_corrupted_centres_are_resized_for_a_network_of_another_size(images, tmp_path):
    """Arrays of 32 pixels, made of files, for a network whose own centre has 48."""
    save_students("teacher", 1.0)
    model = evaluate.Model("teacher", CPU, 8, "fp32")
    bare = model.of_corruption("fog", load_split("data/test.safetensors"), 1)
    files = Manifest("x", ["x"] * 20, *(np.zeros(20),) * 4)
    for size, same in ((32, True), (48, False)):
        model.preprocessing = LOOK._replace(center=Center(size + 8, size, "bilinear"))
        found = model.of_corruption("fog", files, 1)
        assert found.shape == bare.shape and np.array_equal(found, bare) == same
    resized = cut_center(
        torch.from_numpy(np.load(CORRUPTED / "fog.npy")).permute(0, 3, 1, 2),
        Center(48, 48, "bilinear"),
    )
    with torch.inference_mode():
        expected = model.networks[0](normalise(resized.float(), LOOK)).logits
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="fog.npy"):
        model.of_corruption("fog", files, 2)
    write_array(CORRUPTED / "fog.npy", np.zeros((20, 32, 30, 3), np.uint8))
    with pytest.raises(InputError, match=r"images of \(32, 30\): must be squares"):
        model.of_corruption("fog", files, 1)
