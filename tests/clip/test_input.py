"""Images on their way into CLIP, against open_clip's own transforms, without weights."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image

from richkd.base.errors import InputError
from richkd.clip import zero_shot as clip
from richkd.data.dataset import Manifest
from richkd.data.imagesets import cut_center, for_inference
from richkd.data.views import Preprocessing

TAGS = [
    ("ViT-L-14", "openai", 224, "shortest"),
    ("RN50x4", "openai", 288, "shortest"),
    ("ViT-B-32", "laion2b_s34b_b79k", 224, "shortest"),
    ("ViT-H-14-378", "dfn5b", 378, "squash"),
    ("ViT-B-16-SigLIP", "webli", 224, "squash"),
    ("ViT-SO400M-14-SigLIP-384", "webli", 384, "squash"),
    ("ViT-B-16-SigLIP2-256", "webli", 256, "squash"),
    ("ViT-SO400M-16-SigLIP2-512", "webli", 512, "squash"),
    ("ViT-L-14-CLIPA-336", "datacomp1b", 336, "squash"),
    ("MobileCLIP-S1", "datacompdr", 256, "shortest"),
    ("MobileCLIP2-S0", "dfndr2b", 256, "shortest"),
    ("EVA02-L-14-336", "merged2b_s6b_b61k", 336, "shortest"),
    ("coca_ViT-L-14", "laion2b_s13b_b90k", 224, "shortest"),
    ("nllb-clip-base-siglip", "v1", 384, "squash"),
]

AT_MOST = 2.01  # grey levels: PIL rounds to whole ones twice, and files are rounded here, too


def configuration(model, tag):
    """What open_clip writes into the model when it loads the weights of the tag."""
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    base = asdict(PreprocessCfg(size=(size, size)))
    return merge_preprocess_dict(base, open_clip.get_pretrained_cfg(model, tag))


def input_of(config):
    return clip.input_of(SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=config)))


def picture(width, height):
    """Neighbours alike, and 64 to 191: beyond, PIL also clips between its two passes."""
    rng = np.random.default_rng(0)
    small = rng.integers(64, 192, (height // 12, width // 12, 3)).astype(np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))
    noisy = large.astype(int) + rng.integers(-20, 21, large.shape)
    return noisy.clip(64, 191).astype(np.uint8)


def levels_apart(config, pixels, expected=None):
    """The largest difference to open_clip's input, in grey levels: of arrays, and of files."""
    expected = expected or input_of(config)
    right = image_transform_v2(PreprocessCfg(**config), is_train=False)(Image.fromarray(pixels))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    file = cut_center(image, expected.center)  # as `FileSet` cuts it
    levels = torch.tensor(expected.std).view(3, 1, 1) * 255
    for found in (image, file):
        actual = clip.preprocess(found[None] / 255, expected)[0]
        assert actual.shape == right.shape
        yield ((actual - right).abs() * levels).max().item()


@pytest.mark.parametrize(("width", "height"), [(600, 300), (300, 600)])
@pytest.mark.parametrize(("model", "tag", "size", "mode"), TAGS, ids=[t[0] for t in TAGS])
def test_each_tag_s_images_are_open_clip_s(model, tag, size, mode, width, height):
    config = configuration(model, tag)
    expected = input_of(config)
    assert (expected.size, expected.resize_mode) == (size, mode)
    assert max(levels_apart(config, picture(width, height))) < AT_MOST
    other = "squash" if mode == "shortest" else "shortest"
    wrong = expected._replace(resize_mode=other)
    assert min(levels_apart(config, picture(width, height), wrong)) > 20


@pytest.mark.parametrize(("model", "tag"), [("ViT-B-32", "openai"), ("ViT-B-16-SigLIP", "webli")])
def test_image_files_take_the_same_way(tmp_path, model, tag):
    """From the disk to the input, as `evaluate` and `cache` run CLIP on files."""
    config = configuration(model, tag)
    expected = input_of(config)
    sizes = np.array([(600, 300), (300, 600), (240, 240)], np.int32)
    pictures = [Image.fromarray(picture(*size)) for size in sizes.tolist()]
    names = [f"{number}.png" for number in range(len(sizes))]
    for name, image in zip(names, pictures):
        image.save(tmp_path / name)
    three = np.arange(3)
    manifest = Manifest(str(tmp_path), names, three, sizes, three, three < 0)
    look = Preprocessing([0.0] * 3, [1.0] * 3, expected.center)
    (batch,) = for_inference(manifest, look, torch.device("cpu")).split(3)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    right = torch.stack([transform(image) for image in pictures])
    levels = torch.tensor(expected.std).view(3, 1, 1) * 255
    assert ((clip.preprocess(batch, expected) - right).abs() * levels).max() < AT_MOST


@pytest.mark.parametrize("fill", [0, 40, 255])
@pytest.mark.parametrize(("width", "height"), [(600, 300), (301, 600), (333, 333), (50, 21)])
def test_the_longest_side_is_resized_and_the_rest_is_filled(width, height, fill):
    """No tag of today has this mode; open_clip knows it."""
    config = asdict(PreprocessCfg(size=65, resize_mode="longest", fill_color=fill))
    assert max(levels_apart(config, picture(width, height))) < AT_MOST


def test_every_published_tag_has_an_input():
    """All ways of open_clip to prepare an image are known, and none is for images of two sides."""
    tags = open_clip.list_pretrained()
    inputs = [input_of(configuration(model, tag)) for model, tag in tags]
    modes = [open_clip.get_pretrained_cfg(model, tag)["resize_mode"] for model, tag in tags]
    assert [found.resize_mode for found in inputs] == modes and len(modes) > 150
    assert set(modes) <= {"shortest", "longest", "squash"} and modes.count("squash") >= 48
    assert {found.interpolation for found in inputs} <= {"bicubic", "bilinear"}


def test_a_model_of_images_that_are_not_square_is_refused():
    config = asdict(PreprocessCfg(size=(224, 448)))
    with pytest.raises(InputError, match="clip.model takes images of 224 x 448 .* must be square"):
        input_of(config)


# --- SigLIP -------------------------------------------------------------------------------------


def test_siglip_s_bias_changes_no_probability():
    """Its own logits have scale and bias; softmax over the classes does not see the bias."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=16)
    text = open_clip.CLIPTextCfg(context_length=77, width=64, heads=1, layers=1)
    model = open_clip.CustomTextCLIP(
        16, vision, text, init_logit_scale=np.log(10), init_logit_bias=-10.0
    ).eval()
    tokens = open_clip.SimpleTokenizer(context_length=77)(["cat", "dog", "sea"])
    expected = clip.Input(32, [0.5] * 3, [0.5] * 3)
    pixels = torch.rand(5, 3, 40, 60)
    with torch.no_grad():
        own, _ = model.get_logits(clip.preprocess(pixels, expected), tokens)
        classes = model.encode_text(tokens, normalize=True)
        scale = model.logit_scale.exp().item()
        ours = clip.ZeroShot(model, classes, scale, expected)(pixels).logits
    torch.testing.assert_close(ours - 10, own)
    torch.testing.assert_close(ours.softmax(1), own.softmax(1))


def test_constants_are_sent_once(monkeypatch):
    expected = clip.Input(16, [0.11, 0.22, 0.33], [0.44, 0.55, 0.66])
    pixels = torch.rand(2, 3, 16, 16)
    first = clip.preprocess(pixels, expected)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("sent again"))
    assert torch.equal(clip.preprocess(pixels, expected), first)
