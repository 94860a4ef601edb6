"""Saved classifiers come back in eval mode, with the preprocessing of their input."""

import json

import pytest
import torch

from richkd import models, weights
from richkd.base.errors import InputError
from richkd.classifiers import Loaded, load_classifier, save_classifier
from richkd.data.views import Center, Preprocessing

CPU = torch.device("cpu")
ARRAYS = Preprocessing([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.fixture
def model():
    network = models.create("resnet8", 4)
    network(torch.rand(4, 3, 8, 8))  # moves the running statistics
    return network


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model" / "seed0"
    save_classifier(path, Loaded(model, ARRAYS), CPU, arch="resnet8", num_classes=4, seed=0)
    return path


def test_a_classifier_comes_back_in_eval_mode(model, saved):
    loaded, preprocessing = load_classifier(saved, CPU)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        for actual, expected in zip(loaded(images), model.eval()(images)):
            torch.testing.assert_close(actual, expected)
    assert not loaded.training and preprocessing == ARRAYS
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_classifier_knows_how_files_are_cut_for_it(model, saved):
    files = ARRAYS._replace(center=Center(resize=232, size=224, interpolation="bicubic"))
    save_classifier(saved, Loaded(model, files), CPU, arch="resnet8", num_classes=4)
    assert load_classifier(saved, CPU).preprocessing == files


def test_a_network_comes_back_for_the_size_that_it_was_made_for(tmp_path):
    network = models.create("timm/test_vit", 4, 32)
    arguments = {"arch": "timm/test_vit", "num_classes": 4, "img_size": 32}
    save_classifier(tmp_path / "seed0", Loaded(network, ARRAYS), CPU, **arguments)
    loaded, _ = load_classifier(tmp_path / "seed0", CPU)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, network.eval()(images).logits)
    record = json.loads((tmp_path / "seed0.json").read_text())
    assert arguments.items() <= record.items()


def test_the_record_keeps_its_keys(saved):
    record = json.loads(saved.with_suffix(".json").read_text())
    provenance = weights.provenance(CPU)
    assert record == {
        "kind": "classifier",
        "arch": "resnet8",
        "num_classes": 4,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "center": None,
        "seed": 0,
        "saved_together": ["seed0"],
        **provenance,
    }
    assert list(record)[4:7] == ["mean", "std", "center"] and list(record)[-3:] == list(provenance)


def test_weights_that_do_not_fit_the_record_are_refused(saved):
    record = json.loads(saved.with_suffix(".json").read_text())
    saved.with_suffix(".json").write_text(json.dumps(record | {"num_classes": 10}))
    with pytest.raises(InputError, match=r"fc.weight is \(4, 64\) there, \(10, 64\) here"):
        load_classifier(saved, CPU)
