"""timm's networks: outputs, features and preprocessing beside timm's own."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from richkd import models
from richkd.base.errors import InputError
from richkd.data.imagesets import cut_center
from richkd.data.views import Center

# Name: img_size, where the network is made for one size of image, and the side of the images.
NETWORKS: dict[str, tuple[int | None, int]] = {
    "test_vit": (32, 32),
    "deit_tiny_distilled_patch16_224": (32, 32),  # two heads
    "test_maxvit": (64, 64),
    "test_resnet": (None, 32),
    "test_convnext": (None, 32),
    "test_efficientnet": (None, 32),
    "mobilenetv3_small_050": (None, 32),  # timm's own kind of linear layer
    "regnetx_002": (None, 32),
    "test_nfnet": (None, 32),
    "swiftformer_xs": (None, 32),  # two heads on the same features
}
TWO_HEADS = "deit_tiny_distilled_patch16_224", "swiftformer_xs"


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_timms_and_follow_from_the_features(name):
    img_size, side = NETWORKS[name]
    torch.manual_seed(3)
    options = {"img_size": img_size} if img_size else {}
    expected = timm.create_model(name, num_classes=7, **options).eval()
    torch.manual_seed(3)
    model = models.create(f"timm/{name}", 7, img_size).eval()
    state = model.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        output = model(images)
        pooled = expected.forward_head(expected.forward_features(images), pre_logits=True)
        assert isinstance(output, models.ModelOutput) and output.logits.shape == (2, 7)
        assert torch.equal(output.logits, expected(images))
        assert torch.equal(output.features, pooled)
        assert output.features.shape == (2, model.feature_dim)
        if name not in TWO_HEADS:
            assert torch.equal(expected.get_classifier()(output.features), output.logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_in_channels_last_and_autocast(name):
    img_size, side = NETWORKS[name]
    model = models.create(f"timm/{name}", 7, img_size).to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, side, side).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images).float()
        loss = output.logits.square().mean() + output.features.square().mean()
    loss.backward()
    optimizer.step()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())
    assert model.eval()(images).logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "img_size"),
    [
        ("test_resnet", None),  # bilinear
        ("test_vit", 48),  # bicubic
        ("mobilenetv3_small_050", None),
        ("resnet18.tv_in1k", None),
        ("resnet18.a1_in1k", None),  # another crop for these weights
        ("eva02_tiny_patch14_336.mim_in22k_ft_in1k", None),  # both sides to one length
    ],
)
@pytest.mark.parametrize("shape", [(83, 201), (341, 250)])
def test_images_are_prepared_as_timm_prepares_them(name, img_size, shape):
    options = {"img_size": img_size} if img_size else {}
    with torch.device("meta"):
        network = timm.create_model(name, **options)
    config = resolve_model_data_config(network, options)
    found = models.published_input(f"timm/{name}", img_size)
    assert (found.mean, found.std) == (tuple(config["mean"]), tuple(config["std"]))
    waves = np.sin(np.arange(shape[0])[:, None] / 9 + np.arange(shape[1])[None] ** 2 / 900)
    rows = (127 + 120 * waves)[..., None] * [1.0, 0.8, 0.6]
    pixels = rows.round().astype(np.uint8)
    expected = create_transform(**config)(Image.fromarray(pixels))
    levels = 255 * (expected * torch.tensor(found.std).view(3, 1, 1))
    levels += 255 * torch.tensor(found.mean).view(3, 1, 1)
    center = Center(found.resize, found.size, found.interpolation, found.resize_mode)
    cut = cut_center(torch.from_numpy(pixels).permute(2, 0, 1), center)
    assert cut.shape == expected.shape == (3, found.size, found.size)
    assert (cut - levels).abs().max() < 2.01


def test_a_tag_is_of_the_weights_and_not_of_the_network():
    with torch.device("meta"):
        first, second = (
            models.create(f"timm/resnet18{tag}", 3).state_dict() for tag in ("", ".a1_in1k")
        )
    assert [x.shape for x in first.values()] == [x.shape for x in second.values()]


@pytest.mark.parametrize("check", [models.check_name, models.published_input])
def test_unknown_names_and_tags_are_refused_with_those_that_there_are(check):
    with pytest.raises(InputError, match="^model 'timm/resnet19' is unknown: timm has resnet18, "):
        check("timm/resnet19")
    with pytest.raises(
        InputError, match="^model 'timm/resnet18.a9' is unknown: the tags of resnet18 are .*tv_in1k"
    ):
        check("timm/resnet18.a9")
    with pytest.raises(InputError, match="is unknown"):  # nothing is looked up on the web
        check("timm/hf-hub:timm/resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "img_size", "said"),
    [
        ("resnet8", 32, "has no img_size: only some networks of timm have one"),
        ("torchvision/vit_b_16", 32, "has no img_size"),
        ("timm/test_resnet", 32, "cannot be made for img_size 32: .*unexpected keyword.*img_size"),
        ("timm/dla34", None, "is not supported: its logits must come from one linear layer, or "),
        ("timm/levit_128", None, "is not supported"),
        ("timm/crossvit_9_240", None, "is not supported"),
        ("timm/qwen3_vit_88m_enc", None, "is not supported"),  # has no classifier
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_line(name, img_size, said):
    with pytest.raises(InputError, match=f"^model '{name}' {said}") as caught, torch.device("meta"):
        models.create(name, 4, img_size)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused():
    models.check_side("timm/vit_tiny_patch16_224", 32, 32)
    models.check_side("timm/test_resnet", 48)
    with pytest.raises(InputError, match="_224' does not take images of 32 x 32 pixels"):
        models.check_side("timm/vit_tiny_patch16_224", 32)
    with pytest.raises(InputError, match="'timm/volo_d1_224' does not take"):  # a tuple in a sum
        models.check_side("timm/volo_d1_224", 224)
    with pytest.raises(InputError, match="timm/vit_base_patch16_sapiens2.*must be square"):
        models.published_input("timm/vit_base_patch16_sapiens2")
    with pytest.raises(InputError, match="has images of crop mode 'border' in timm: must be cent"):
        models.published_input("timm/deepseek_vit_412m")


def test_only_resnets_have_feature_maps():
    maps = models.with_maps(models.create("timm/test_resnet", 4))(torch.rand(1, 3, 64, 64)).maps
    assert [list(one.shape[2:]) for one in maps] == [[side] * 2 for side in (16, 8, 4, 2)]
    for name in ("test_convnext", "test_vit"):  # the first names a module `stages`
        with pytest.raises(InputError, match=f"^the stages of timm/{name} are not known"):
            models.with_maps(models.create(f"timm/{name}", 4))
