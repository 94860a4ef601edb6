"""Saved models come back bit for bit; anything else on disk is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from richkd import classifiers, models, weights
from richkd.base.errors import InputError
from richkd.data.views import Center

CPU = torch.device("cpu")
RECORD = {
    "kind": "classifier", "arch": "resnet8", "num_classes": 4, "mean": [0.1], "std": [0.2],
    "center": None,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    model = models.create("resnet8", 4)
    model(torch.rand(4, 3, 8, 8))  # moves the running statistics
    path = tmp_path / "model" / "seed0"
    weights.save(path, model.state_dict(), RECORD)
    return model, path


def test_a_classifier_comes_back_in_eval_mode(saved):
    model, path = saved
    loaded, mean, std, center = classifiers.load_classifier(path, CPU)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        for actual, expected in zip(loaded(images), model.eval()(images)):
            torch.testing.assert_close(actual, expected)
    assert not loaded.training and (mean, std, center) == ([0.1], [0.2], None)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_classifier_knows_how_files_are_cut_for_it(saved):
    model, path = saved
    center = Center(resize=232, size=224, interpolation="bicubic")
    weights.save(path, model.state_dict(), RECORD | {"center": center._asdict()})
    assert classifiers.load_classifier(path, CPU).center == center


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
        classifiers.load_classifier(path, CPU)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(saved, share):
    _, path = saved
    file = path.with_suffix(".safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"{file} is not whole: "):
        classifiers.load_classifier(path, CPU)


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
