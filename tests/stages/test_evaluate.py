"""The stages `evaluate` and `calibrate` on a student that diverged, and the fused teacher's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from richkd import models
from richkd.base.files import write_array, write_json
from richkd.classifiers import Loaded, save_classifier
from richkd.data.dataset import CORRUPTED, Info, Split, save_info, save_split
from richkd.data.views import Preprocessing
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
