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
import torchvision

from richkd import models
from richkd.base.errors import InputError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHAPES = json.loads((GOLDEN / "models.json").read_text())
PUBLISHED = list(SHAPES)


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


def test_there_are_all_published_models_and_two_more():
    assert len(PUBLISHED) == 23
    assert sorted(models.names()) == sorted([*PUBLISHED, "mobilenetv1", "resnet8x2"])


def test_reference_names_are_those_that_differ():
    named = {name: entry["reference_name"] for name, entry in SHAPES.items()}
    assert models.REFERENCE_NAMES == {ours: ref for ours, ref in named.items() if ref != ours}


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


# The smallest of every family, and of every kind of block.
SMALL = ["resnet8", "resnet8x2", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenetv2"]
SMALL += ["mobilenetv1", "shufflenetv1", "shufflenetv2", "resnet18", "resnet50"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (32, 16)])
def test_other_input_sizes_and_numbers_of_classes(name, size):
    model = models.create(name, 7)
    logits, features = model(torch.rand(3, 3, *size))
    assert logits.shape == (3, 7) and features.shape == (3, model.feature_dim)
    (logits.sum() + features.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [(64, 64), (9, 13)])
def test_every_model_takes_larger_and_odd_sizes(name, size):
    model = models.create(name, 7).eval()
    with torch.no_grad():
        logits, features = model(torch.rand(1, 3, *size))
    assert logits.shape == (1, 7) and features.shape == (1, model.feature_dim)
    assert logits.isfinite().all() and features.isfinite().all()


def test_mobilenetv1_is_the_one_of_the_literature_on_imagenet():
    model = models.create("mobilenetv1", 1000).eval()
    assert sum(p.numel() for p in model.parameters()) == 4_231_976
    assert model.feature_dim == 1024
    sides = []
    model.model.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2]))
    for side in (224, 32):
        with torch.no_grad():
            logits, features = model(torch.rand(2, 3, side, side))
        assert logits.shape == (2, 1000) and features.shape == (2, 1024)
    assert sides == [7, 1]


def test_vgg_pools_once_more_at_64_pixels_and_refuses_less_than_8():
    model = models.create("vgg8", 5).eval()
    sides = []
    model.block4.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2]))
    for side in (8, 32, 48, 64):
        model(torch.rand(1, 3, side, side))
    assert sides == [1, 4, 6, 4]
    with pytest.raises(ValueError, match="at least 8x8 pixels, not 32x7"):
        model(torch.rand(1, 3, 32, 7))


@pytest.mark.parametrize("name", [*SMALL, "torchvision/resnet18"])
def test_a_training_step_in_channels_last_and_autocast(name):
    model = models.create(name, 7).to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = model(images)
        loss = logits.square().mean() + features.square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert model(images).logits.isfinite().all()


LAST_LAYERS = {
    "resnet8": "fc",
    "resnet18": "linear",
    "wrn_16_1": "fc",
    "vgg8": "classifier",
    "mobilenetv1": "fc",
    "mobilenetv2": "classifier",
    "shufflenetv1": "linear",
    "shufflenetv2": "linear",
}


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_logits_follow_from_the_features(name):
    model = models.create(name, 5).eval()
    logits, features = model(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(logits, getattr(model, LAST_LAYERS[name])(features))


@pytest.mark.parametrize("name", models.names())
def test_every_name_builds_the_same_weights_from_the_same_seed(name):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.create(name, 10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_names_are_refused_with_what_is_allowed():
    allowed = ", ".join([*models.names(), "torchvision/<name>", "timm/<name>"])
    for call in (models.check_name, lambda name: models.create(name, 10)):
        with pytest.raises(InputError) as refused:
            call("resnet9")
        assert str(refused.value) == f"model 'resnet9' is unknown: must be one of {allowed}"


@pytest.mark.parametrize("name", [*models.names(), "torchvision/resnet18", "torchvision/vit_b_16"])
def test_known_names_pass_the_check(name):
    models.check_name(name)


@pytest.mark.parametrize(
    "name, last", [("resnet18", "fc"), ("mobilenet_v2", "classifier.1"), ("vgg11", "classifier.6")]
)
def test_torchvision_models_give_what_torchvision_gives(name, last):
    torch.manual_seed(3)
    expected = torchvision.models.get_model(name, num_classes=7).eval()
    torch.manual_seed(3)
    model = models.create(f"torchvision/{name}", 7).eval()
    state = model.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = model(images)
        assert isinstance(output, models.ModelOutput)
        torch.testing.assert_close(output.logits, expected(images))
        assert output.features.shape == (2, model.feature_dim)
        logits = expected.get_submodule(last)(output.features)
        torch.testing.assert_close(logits, output.logits)


@pytest.mark.parametrize("check", [models.check_name, lambda name: models.create(name, 10)])
def test_unknown_torchvision_names_are_refused_with_close_ones(check):
    with pytest.raises(InputError, match="model 'torchvision/resnet5' is unknown: .*resnet50"):
        check("torchvision/resnet5")
    with pytest.raises(InputError, match="is unknown"):  # torchvision has it, but no classifier
        check("torchvision/fcn_resnet50")


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_torchvision_models_without_one_linear_classifier_are_refused(name):
    with pytest.raises(ValueError, match=f"model 'torchvision/{name}' is not supported"):
        models.create(f"torchvision/{name}", 10)


# --- feature maps -------------------------------------------------------------------------------

# Stages, and the sides of their maps of an image of 32 pixels.
SIDES = {
    "resnet": [32, 16, 8],
    "resnet_imagenet": [32, 16, 8, 4],
    "wrn": [32, 16, 8],
    "vgg": [16, 8, 4, 4],
    "mobilenetv1": [8, 4, 2, 1],
    "mobilenetv2": [16, 8, 4, 2],
    "shufflenet": [16, 8, 4],
}
MAPPED = {name: SIDES[family] for family, names in models.FAMILIES.items() for name in names}
MAPPED["torchvision/resnet18"] = [8, 4, 2, 1]
MAPPED["torchvision/resnet50"] = [8, 4, 2, 1]


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks]


@pytest.mark.parametrize("name", MAPPED)
def test_maps_after_each_stage(name):
    model = models.create(name, 7).eval()
    images = torch.rand(2, 3, 32, 32)
    plain, mapped = model(images), models.with_maps(model)(images)
    assert plain.maps == () and not hooks(model)
    assert isinstance(mapped, models.ModelOutput) and len(mapped) == 2
    assert torch.equal(mapped.logits, plain.logits)
    assert torch.equal(mapped.features, plain.features)
    assert [list(one.shape[2:]) for one in mapped.maps] == [[side, side] for side in MAPPED[name]]
    assert all(one.dim() == 4 and len(one) == 2 for one in mapped.maps)

    first = next(model.parameters())
    for one in mapped.maps:
        (gradient,) = torch.autograd.grad(one.square().sum(), first, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_each_stage_makes_its_map_from_the_map_before():
    model = models.create("resnet8", 5).eval()
    output = models.with_maps(model)(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(model.layer2(output.maps[0]), output.maps[1], rtol=0, atol=0)
    torch.testing.assert_close(model.layer3(output.maps[1]), output.maps[2], rtol=0, atol=0)
    torch.testing.assert_close(output.maps[2].mean((2, 3)), output.features, rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_no_later_layer_writes_into_a_map(name):
    model = models.create(name, 5).eval()
    copies = []
    for stage in model.stages:
        model.get_submodule(stage).register_forward_hook(
            lambda module, inputs, output: copies.append(output.clone())
        )
    maps = models.with_maps(model)(torch.rand(1, 3, 32, 32)).maps
    assert all(torch.equal(one, copy) for one, copy in zip(maps, copies, strict=True))


def test_a_call_that_fails_leaves_no_hooks():
    model = models.create("resnet8", 5)
    with pytest.raises(RuntimeError):
        models.with_maps(model)(torch.rand(2, 1, 32, 32))
    assert not hooks(model)


def test_maps_of_a_compiled_model():
    model = models.create("resnet8", 5)
    forward = models.with_maps(model)
    compiled = torch.compile(forward, backend="eager")
    for _ in range(2):  # the second call uses the code of the first
        images = torch.rand(4, 3, 16, 16)
        expected, actual = forward(images), compiled(images)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(actual.maps, expected.maps)
        assert len(actual.maps) == 3 and not hooks(model)


def test_float_converts_logits_features_and_maps():
    model = models.create("resnet8", 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = models.with_maps(model)(torch.rand(2, 3, 16, 16))
    assert output.logits.dtype == output.maps[0].dtype == torch.bfloat16
    converted = output.float()
    assert isinstance(converted, models.ModelOutput) and len(converted.maps) == 3
    for half, full in zip((*output, *output.maps), (*converted, *converted.maps), strict=True):
        assert full.dtype == torch.float32 and torch.equal(full, half.float())
    assert model(torch.rand(2, 3, 16, 16)).float().maps == ()


def test_maps_of_networks_without_known_stages_are_refused():
    for model, name in (
        (models.create("torchvision/mobilenet_v2", 5), "torchvision/mobilenet_v2"),
        (torch.nn.Linear(3, 5), "Linear"),
    ):
        with pytest.raises(
            InputError, match=f"^the stages of {name} are not known, so it has no feature maps"
        ):
            models.with_maps(model)


# --- importing ----------------------------------------------------------------------------------


def test_names_and_their_check_need_no_torch():
    code = (
        "import sys, richkd.params; from richkd import models; models.check_name('resnet8');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
