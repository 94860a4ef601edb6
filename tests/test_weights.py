"""Saved models come back bit for bit; anything else on disk is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from richkd import models, weights
from richkd.base.errors import InputError

CPU = torch.device("cpu")
RECORD = {"kind": "classifier", "arch": "resnet8", "num_classes": 4}


@pytest.fixture
def saved(tmp_path):
    model = models.create("resnet8", 4)
    model(torch.rand(4, 3, 8, 8))  # moves the running statistics
    path = tmp_path / "model" / "seed0"
    weights.save(path, model.state_dict(), RECORD)
    return model, path


def test_tensors_in_any_memory_format_are_saved(tmp_path):
    tensor = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    weights.save(tmp_path / "x", {"a": tensor, "b": tensor[0, 0].T}, {})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"], tensor) and torch.equal(loaded["b"], tensor[0, 0].T)


def test_weights_of_another_model_are_refused_by_parameter_and_shapes(saved):
    _, path = saved
    with pytest.raises(InputError) as caught:
        weights.load_into(models.create("resnet8x4", 4), f"{path}.safetensors")
    assert str(caught.value) == (
        f"{path}.safetensors is of another model: conv1.weight is (16, 3, 3, 3) there, "
        "(32, 3, 3, 3) here"
    )


def test_a_path_is_named_in_full_and_an_open_file_by_its_name(saved, tmp_path):
    _, path = saved
    file = path.with_suffix(".safetensors")
    with pytest.raises(InputError, match=f"{file} is of another model"):
        weights.load_into(models.create("resnet8", 10), file)
    (tmp_path / "x.pth").write_bytes(b"text")
    with (tmp_path / "x.pth").open("rb") as opened, pytest.raises(InputError, match="x.pth is no"):
        weights.read_tensors(opened)


def test_another_number_of_classes_is_refused(saved):
    _, path = saved
    with pytest.raises(InputError, match=r"fc.weight is \(4, 64\) there, \(10, 64\) here"):
        weights.load_into(models.create("resnet8", 10), f"{path}.safetensors")


def test_missing_and_unknown_parameters_are_refused_by_name(saved):
    _, path = saved
    with pytest.raises(InputError, match=r"layer1.1.conv1.weight is missing there, \(16, 16"):
        weights.load_into(models.create("resnet14", 4), f"{path}.safetensors")
    tensors = load_file(f"{path}.safetensors")
    save_file(tensors | {"extra": torch.zeros(2)}, f"{path}.safetensors")
    with pytest.raises(InputError, match=r"extra is \(2,\) there, unknown here"):
        weights.load_into(models.create("resnet8", 4), f"{path}.safetensors")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(saved, share):
    _, path = saved
    file = path.with_suffix(".safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"{file} is not whole: "):
        weights.load_into(models.create("resnet8", 4), f"{path}.safetensors")


def test_the_record_says_what_the_weights_are(saved):
    _, path = saved
    assert json.loads(path.with_suffix(".json").read_text()) == RECORD


def test_paths_are_in_the_order_of_seeds_and_without_suffix(tmp_path):
    for seed in (10, 9, 0):
        (tmp_path / f"seed{seed}.json").touch()
    assert [path.name for path in weights.paths(tmp_path)] == ["seed0", "seed9", "seed10"]


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_models_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / folder} holds no model"):
        weights.paths(tmp_path / folder)


def test_provenance_names_versions_and_device():
    provenance = weights.provenance(CPU)
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["device"].startswith("cpu") and provenance["threads"] >= 1
    json.dumps(provenance)
