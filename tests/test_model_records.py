"""Which models a folder holds: all that were saved together, or a line that names the missing."""

import json

import pytest

from richkd import model_records
from richkd.base.errors import InputError


def save(folder, seeds, together=None):
    names = [f"seed{seed}" for seed in (together or seeds)]
    record = {"saved_together": names, "versions": {}, "device": "cpu", "threads": 1}
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        (folder / f"seed{seed}.json").write_text(json.dumps(record))
        (folder / f"seed{seed}.safetensors").touch()


def test_paths_are_in_the_order_of_seeds_and_without_suffix(tmp_path):
    save(tmp_path, [10, 9, 0])
    assert [path.name for path in model_records.paths(tmp_path)] == ["seed0", "seed9", "seed10"]


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_models_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / folder} holds no model"):
        model_records.paths(tmp_path / folder)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_missing_seed_is_named(tmp_path, seed, suffix):
    save(tmp_path, [0, 1, 2])
    missing = tmp_path / f"seed{seed}.{suffix}"
    missing.unlink()
    said = f"{missing} is missing: {tmp_path} was saved with 3 models, seed0, seed1, seed2"
    with pytest.raises(InputError, match=said):
        model_records.paths(tmp_path)


def test_a_model_of_another_run_is_refused(tmp_path):
    save(tmp_path, [0, 1])
    save(tmp_path, [3], together=[3])
    with pytest.raises(InputError, match="seed3.json was not saved with seed0, seed1"):
        model_records.paths(tmp_path)


@pytest.mark.parametrize("names", [[], ["../x"], "seed0", None, ["seed"]])
def test_a_record_that_does_not_say_so_is_refused(tmp_path, names):
    save(tmp_path, [0])
    record = json.loads((tmp_path / "seed0.json").read_text()) | {"saved_together": names}
    (tmp_path / "seed0.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="seed0.json is damaged or of another version"):
        model_records.paths(tmp_path)
