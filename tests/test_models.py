"""Architectures against the parameter names and outputs of the published CIFAR models."""

import json
import math
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from richkd import models

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHAPES = json.loads((GOLDEN / "models.json").read_text())
PUBLISHED = [name for name in models.names() if name in SHAPES]


def golden_weight(name, like):
    """A weight that depends on its name and shape alone."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(like)
    phase = 2 * math.pi * (crc32(name.encode()) % 10007) / 10007
    wave = torch.from_numpy(np.sin(np.arange(like.numel()) * 0.7310585 + phase)).view(like.shape)
    if name.endswith("running_var"):
        return 1 + 0.3 * wave
    if name.endswith(("running_mean", "bias")):
        return 0.1 * wave
    if like.dim() >= 2:
        return wave * math.sqrt(4 / like[0].numel())
    return 1 + 0.1 * wave


def test_there_are_published_models():
    assert {"resnet8", "resnet56", "resnet8x4", "resnet32x4"} <= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_named_and_shaped_as_published(name):
    model = models.create(name, 100)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(shapes.items()) == list(SHAPES[name]["state_dict"].items())
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name]["parameters"]
    assert model.feature_dim == SHAPES[name]["pooled_dim"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_are_the_published_ones(name):
    model = models.create(name, 100).double().eval()
    state = model.state_dict()
    model.load_state_dict({key: golden_weight(key, tensor) for key, tensor in state.items()})
    images = torch.from_numpy(np.sin(np.arange(2 * 3 * 32 * 32) * 0.0137) * 1.5)
    with torch.no_grad():
        output = model(images.view(2, 3, 32, 32))
    with np.load(GOLDEN / "models.npz") as golden:
        for actual, part in ((output.logits, "logits"), (output.features, "pooled")):
            expected = golden[f"{name}/{part}"]
            error = np.abs(actual.numpy() - expected).max() / np.abs(expected).max()
            assert actual.shape == expected.shape and error < 1e-9


@pytest.mark.parametrize("name", ["resnet8", "resnet8x2", "resnet8x4"])
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (32, 16)])
def test_other_input_sizes_and_numbers_of_classes(name, size):
    model = models.create(name, 7)
    logits, features = model(torch.rand(3, 3, *size))
    assert logits.shape == (3, 7) and features.shape == (3, model.feature_dim)
    (logits.sum() + features.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_logits_follow_from_the_features():
    model = models.create("resnet8", 5).eval()
    logits, features = model(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(logits, model.fc(features))


@pytest.mark.parametrize("name", models.names())
def test_every_name_builds_the_same_weights_from_the_same_seed(name):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.create(name, 10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="model 'resnet9' is unknown: choose one of resnet8, "):
        models.create("resnet9", 10)


def test_names_need_no_torch():
    code = (
        "import sys, richkd.params, richkd.models; richkd.models.names();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
