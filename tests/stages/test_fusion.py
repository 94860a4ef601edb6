"""The stage `fusion` on small tables: what it writes, says and refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file
from two_teachers import validation

import stages.evaluate_fused
import stages.fusion
from richkd.base.errors import InputError
from richkd.base.files import write_array, write_json
from richkd.base.records import read_csv, read_json
from richkd.data.dataset import CORRUPTED, SHIFTED, Info, Split, save_info, save_split
from richkd.evaluate import summary
from richkd.teachers.align import align
from richkd.teachers.fusion import Recipe, load_recipe, table_fingerprints

ROOT = Path(__file__).parents[2]
PLAIN = {"teacher": 1.0, "clip": 1.0}


def write_params(preset="digits", top_k=None, **fusion):
    content = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text())
    content["fusion"] |= fusion
    content["cache"]["top_k"] = top_k
    Path("params.yaml").write_text(yaml.safe_dump(content))


def made(found):
    """What `prepare`, `clip` and `cache` leave for the stage."""
    images = np.zeros((len(found.labels), 16, 16, 3), np.uint8)
    save_split("data/validation.safetensors", Split(images, found.labels))
    for name in ("teacher", "clip"):
        write_json(f"cache/{name}/cache.json", {"content": name})
        write_array(f"cache/{name}/validation.npy", getattr(found, name))
    Path("models/clip").mkdir(parents=True)
    save_file({"classifier": np.eye(5, dtype=np.float32)}, "models/clip/seed0.safetensors")
    return found


@pytest.fixture
def found(here):
    return made(validation((0.5, 0.8), images=200))


def test_a_number_gives_the_recipe_of_the_paper(found):
    """The same bytes as before there were other choices, so that no student becomes stale."""
    write_params(alpha=0.25, lam=0.4)
    stages.fusion.main()
    assert read_json("cache/fused/fused.json") == {
        "alpha": 0.25, "lam": 0.4, "scales": PLAIN, "tables": table_fingerprints(),
    }  # fmt: skip
    choices = read_csv("metrics/fusion/choices.csv", summary.CHOICE_COLUMNS)
    assert choices.shipped.tolist() == [True, *[False] * (len(choices) - 1)]
    read_csv("metrics/fusion/alpha.csv", summary.ALPHA_COLUMNS)
    read_json("metrics/fusion.json", summary.Fusion)


def test_auto_is_written_as_a_number_with_what_it_needs(found, capsys):
    write_params(align="temperature", alpha="auto", lam="auto")
    stages.fusion.main()
    recipe = load_recipe()
    assert recipe.scales == align(recipe, "temperature", found).scales
    assert 0.2 < recipe.alpha == recipe.lam < 0.6
    choices = read_csv("metrics/fusion/choices.csv", summary.CHOICE_COLUMNS)
    (shipped,) = choices[choices.shipped].to_dict("records")
    assert (shipped["align"], shipped["chosen"]) == ("temperature", "auto")
    assert f"auto {recipe.alpha:.3g} ({shipped['alpha_low']:.2f} to " in capsys.readouterr().out
    fused = read_json("metrics/fusion.json", summary.Fusion)["fused"]
    assert fused["nll"] == pytest.approx(shipped["nll"])


def test_without_validation_images_there_is_the_recipe_alone(here):
    made(validation(images=0))
    write_params("cifar100", alpha=0.5, lam="auto")
    stages.fusion.main()
    assert load_recipe() == Recipe(0.5, 0.5, PLAIN, table_fingerprints())
    assert read_json("metrics/fusion.json") == {}
    for name, columns in (("alpha", summary.ALPHA_COLUMNS), ("choices", summary.CHOICE_COLUMNS)):
        table = read_csv(f"metrics/fusion/{name}.csv", columns)
        assert table.empty and list(table.columns) == list(columns)


def test_of_too_many_images_every_other_is_looked_at(found, monkeypatch, capsys):
    monkeypatch.setattr(stages.fusion, "MAX_IMAGES", 199)
    write_params(alpha="auto")
    stages.fusion.main()
    said = "of 200 validation images 1 in 2 is looked at, for the time it takes"
    assert said in capsys.readouterr().out
    looked_at, _ = stages.fusion.read_validation(found.labels)
    assert np.array_equal(looked_at.teacher, found.teacher[::2])
    monkeypatch.setattr(stages.fusion, "MAX_LOGITS", 340)
    assert len(stages.fusion.read_validation(found.labels)[0].labels) == 67


def test_a_damaged_record_of_a_table_is_refused(found):
    write_params(alpha=0.5)
    path = Path("cache/teacher/cache.json")
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(InputError, match="^cache/teacher/cache.json is damaged: Invalid JSON"):
        stages.fusion.main()
    assert not Path("cache/fused").exists()


def test_a_teacher_that_may_know_the_images_is_named(found, capsys):
    write_params("cifar100-mini", alpha="auto", seen_validation="allow")
    stages.fusion.main()
    assert "the ready-made teacher may have been trained on " in capsys.readouterr().out


def test_what_is_not_possible_is_one_line_before_anything_is_written(here):
    found = validation(images=200)
    made(found._replace(clip=9 * np.eye(5, dtype=np.float32)[found.labels]))
    write_params(align="temperature")
    with pytest.raises(
        InputError, match="^fusion.align: temperature is not possible, only none or"
    ):
        stages.fusion.main()
    assert not Path("cache/fused").exists() and not Path("metrics").exists()


@pytest.mark.parametrize(
    "more", [{}, {"standardize": True}, {"class_alphas": (0.1, 0.9, 0.0, 1.0, 0.5)}]
)
def test_the_fused_predictions_are_mixed_by_the_recipe(found, more):
    """Also those of corrupted images, which have 16 bits and are up to a number for each row."""
    write_params()
    recipe = Recipe(0.25, 0.5, {"teacher": 2.0, "clip": 0.5}, {"teacher": "1", "clip": "2"}, **more)
    recipe.save()
    assert load_recipe() == recipe
    save_split("data/test.safetensors", Split(np.zeros((200, 16, 16, 3), np.uint8), found.labels))
    save_info(
        "data/info.json", Info(name="digits", classes=list("abcde"), mean=[0.5] * 3, std=[1.0] * 3)
    )
    write_json(SHIFTED / "sets.json", {})
    CORRUPTED.mkdir()
    (CORRUPTED / "skipped.txt").write_text("")
    for name in ("teacher", "clip"):
        logits = getattr(found, name)[None]
        for part in ("validation", "test"):
            write_array(f"predictions/{name}/{part}.npy", logits)
        write_json(f"predictions/{name}/seeds.json", ["seed0"])
        less = logits - logits.max(-1, keepdims=True)
        write_array(f"predictions/{name}/corrupted.npy", less[:, None, None].astype(np.float16))
    for part in ("validation", "test"):
        assert not Path(f"predictions/fused/{part}.npy").exists()
    with pytest.MonkeyPatch.context() as patch:  # the score of made-up corruptions
        patch.setattr(stages.evaluate_fused, "score", lambda *_: None)
        stages.evaluate_fused.main()
    expected = found.mixed(recipe)
    np.testing.assert_array_equal(np.load("predictions/fused/test.npy")[0], expected.astype("f4"))
    corrupted = np.load("predictions/fused/corrupted.npy")[0, 0, 0].astype(float)
    moved = corrupted - expected
    assert np.abs(moved - moved.mean(1)[:, None]).max() < 0.03


def test_the_table_of_choices_fits_a_screen(found, capsys):
    write_params()
    stages.fusion.main()
    lines = capsys.readouterr().out.splitlines()
    assert pd.Series(lines).str.len().max() <= 140
