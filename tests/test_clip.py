"""CLIP: its input, its zero-shot classifier, its training."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from richkd import clip, params, weights
from richkd.engine import to_input
from richkd.errors import InputError
from richkd.params import ClipModel, ClipTraining
from richkd.resume import Checkpoint

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
CLASSES = ["one", "two", "three", "four"]
CONFIG = ClipModel(
    embed_dim=16, image_size=32, vision_layers=(1, 1, 1, 1), vision_width=8, text_width=16,
    text_layers=1, text_heads=2, context_length=16,
)  # fmt: skip
TRAINING = ClipTraining(
    captions=("a photo of {}", "{} again"), steps=50, batch_size=8, lr=0.003, weight_decay=0.1,
    seed=0,
)  # fmt: skip


def towers(seed=0):
    torch.manual_seed(seed)
    return clip.create(CONFIG)


@pytest.fixture(scope="module")
def pixels(split):
    return to_input(split.images, [0.0] * 3, [1.0] * 3, CPU)


def fit(model, split, pixels, training=TRAINING, precision="fp32", checkpoint=("clip", "key")):
    labels = torch.from_numpy(split.labels)
    return clip.fit(
        model, CONFIG, training, pixels, labels, CLASSES, MEAN, STD, precision,
        Checkpoint(*checkpoint),
    )  # fmt: skip


# --- its input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before, after", [(16, 32), (32, 64), (64, 32)])
def test_preprocessing_is_pils_bicubic_resize_and_normalisation(before, after):
    # From 64 to 191: beyond, PIL also clips between its two passes.
    images = np.random.default_rng(0).integers(64, 192, (4, before, before, 3)).astype(np.uint8)
    actual = clip.preprocess(to_input(images, [0.0] * 3, [1.0] * 3, CPU), after, MEAN, STD)
    resized = [Image.fromarray(x).resize((after, after), Image.Resampling.BICUBIC) for x in images]
    expected = to_input(np.stack([np.asarray(x) for x in resized]), MEAN, STD, CPU)
    assert actual.shape == (4, 3, after, after)
    levels = (actual - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.max() < 1.5  # PIL rounds to whole ones, twice


def test_pixels_of_the_right_size_are_only_normalised(pixels):
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(clip.preprocess(pixels, 8, MEAN, STD), expected)


def test_overshoot_of_the_resize_is_clamped():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    result = clip.preprocess(edge, 32, [0.0] * 3, [1.0] * 3)
    assert result.min() == 0 and result.max() == 1


# --- zero-shot classification -------------------------------------------------------------------


def test_class_embeddings_are_the_normalised_mean_over_prompts():
    model, prompts = towers().eval(), ["a photo of {}", "{}", "the word {} written"]
    actual = clip.class_embeddings(model, CONFIG, CLASSES, prompts)
    tokens = functools.partial(clip.tokenize, CONFIG)
    with torch.no_grad():
        each = [
            F.normalize(model.encode_text(tokens([p.format(c) for c in CLASSES])), dim=1)
            for p in prompts
        ]
    expected = F.normalize(torch.stack(each).mean(0), dim=1)
    torch.testing.assert_close(actual, expected)
    single = clip.class_embeddings(model, CONFIG, CLASSES, prompts[:1])
    torch.testing.assert_close(single, each[0])
    assert not torch.allclose(actual, single)


def zero_shot(seed=0, scale=20.0):
    model = towers(seed).eval()
    classifier = clip.class_embeddings(model, CONFIG, CLASSES, ["a photo of {}", "{}"])
    return clip.ZeroShot(model, CONFIG, classifier, scale, MEAN, STD).eval()


def test_logits_are_the_scale_times_the_cosine(pixels):
    model = zero_shot()
    with torch.no_grad():
        logits, features = model(pixels)
        embedding = model.clip.encode_image(clip.preprocess(pixels, 32, MEAN, STD))
    cosine = F.cosine_similarity(embedding[:, None], model.classifier[None], dim=2)
    torch.testing.assert_close(logits, 20 * cosine)
    torch.testing.assert_close(features, F.normalize(embedding, dim=1))
    assert logits.shape == (22, 4) and features.shape == (22, 16)


def save(model, path):
    record = {
        "kind": "clip", "model": params.to_dict(CONFIG), "classes": CLASSES,
        "scale": model.scale, "mean": MEAN, "std": STD,
    }  # fmt: skip
    weights.save(path, model.state_dict(), record)
    return record


def test_a_saved_classifier_comes_back_and_takes_pixels(tmp_path, pixels, split):
    model = zero_shot(scale=12.5)
    save(model, tmp_path / "seed0")
    loaded, mean, std = weights.load_classifier(tmp_path / "seed0", CPU)
    assert loaded.config == CONFIG and not loaded.training
    # It normalises by itself: with the mean and std it comes with, images stay pixels in [0, 1].
    images = to_input(split.images, mean, std, CPU)
    assert 0 <= images.min() and images.max() <= 1
    with torch.no_grad():
        for actual, expected in zip(loaded(images), model(pixels)):
            torch.testing.assert_close(actual, expected)
        normalised = to_input(split.images, MEAN, STD, CPU)
        assert not torch.allclose(loaded(normalised).logits, model(pixels).logits, atol=0.01)


def test_weights_of_another_clip_are_refused(tmp_path):
    record = save(zero_shot(), tmp_path / "seed0")
    record["model"]["embed_dim"] = 8
    with pytest.raises(InputError, match=r"another model: classifier is \(4, 16\) there, \(4, 8\)"):
        clip.load_zero_shot(tmp_path / "seed0", record)


# --- training -----------------------------------------------------------------------------------


def test_training_lowers_the_loss(here, split, pixels):
    model = towers()
    history = fit(model, split, pixels)
    assert [row["step"] for row in history] == [20, 40, 50]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert 0 <= model.logit_scale.item() <= np.log(100)


def test_training_makes_a_better_classifier(here, split, pixels):
    model = towers()
    fit(model, split, pixels, dataclasses.replace(TRAINING, steps=120))
    classifier = clip.class_embeddings(model, CONFIG, CLASSES, TRAINING.captions)
    with torch.no_grad():
        trained = clip.ZeroShot(model, CONFIG, classifier, 1.0, MEAN, STD).eval()
        hits = trained(pixels).logits.argmax(1) == torch.from_numpy(split.labels)
    assert hits.float().mean() > 0.6  # chance is a quarter


@pytest.mark.parametrize("calls", [0, 20, 33])
def test_a_killed_training_ends_bit_for_bit_where_the_unbroken_does(
    here, split, pixels, killed_after, calls
):
    model = towers()
    history = fit(model, split, pixels, checkpoint=("unbroken", "key"))
    killed = towers()
    with killed_after(killed, calls):
        fit(killed, split, pixels)
    resumed = towers(seed=0 if calls < 20 else 1)
    assert fit(resumed, split, pixels) == history
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_another_experiment_never_resumes(here, split, pixels):
    short = dataclasses.replace(TRAINING, steps=3)
    fit(towers(seed=1), split, pixels, short, checkpoint=("clip", "one"))
    fresh = fit(towers(), split, pixels, short, checkpoint=("fresh", "another"))
    assert fit(towers(), split, pixels, short, checkpoint=("clip", "another")) == fresh


def test_bf16_trains(here, split, pixels):
    history = fit(towers(), split, pixels, dataclasses.replace(TRAINING, steps=2), "bf16")
    assert np.isfinite(history[-1]["loss"])


def test_a_loss_that_is_not_a_number_is_an_error(here, split, pixels):
    with pytest.raises(InputError, match="loss is nan"):
        fit(towers(), split, pixels, dataclasses.replace(TRAINING, lr=1e6))


def test_a_text_that_does_not_fit_is_an_error():
    assert clip.tokenize(CONFIG, ["ninety-nine"]).shape == (1, 16)
    with pytest.raises(InputError, match="context_length is 16: the longest prompt or caption has"):
        clip.tokenize(CONFIG, ["one", "a photo of the number " * 4])
