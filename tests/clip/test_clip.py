"""CLIP: its input, its zero-shot classifier, its training, ready-made models."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as registry
from PIL import Image
from serving import Answer
from torch.nn import functional as F

from richkd import classifiers, params, weights
from richkd.base.errors import InputError
from richkd.base.files import sha256, write_json
from richkd.base.resume import Checkpoint
from richkd.clip import zero_shot as clip
from richkd.clip.training import Captioned, train_clip
from richkd.data.resident import to_input
from richkd.data.views import Center, Preprocessing
from richkd.engine import predict
from richkd.params import ClipTowers, ClipTraining

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
CLASSES = ["one", "two", "three", "four"]
CONFIG = ClipTowers(
    embed_dim=16,
    image_size=32,
    vision_layers=(1, 1, 1, 1),
    vision_width=8,
    text_width=16,
    text_layers=1,
    text_heads=2,
    context_length=16,
)
TRAINING = ClipTraining(
    captions=("a photo of {}", "{} again"),
    steps=50,
    batch_size=8,
    lr=0.003,
    weight_decay=0.1,
    seed=0,
)

INPUT = clip.Input(32, MEAN, STD)
UNCHANGED, NORMALISED = Preprocessing([0.0] * 3, [1.0] * 3), Preprocessing(MEAN, STD)
ROOT = Path(__file__).parents[2]


def towers(seed=0):
    torch.manual_seed(seed)
    return clip.create_clip(CONFIG)


@pytest.fixture(scope="module")
def pixels(split):
    return to_input(split.images, UNCHANGED, CPU)


def fit(
    model,
    split,
    pixels,
    training=TRAINING,
    precision="fp32",
    checkpoint=("clip", "key"),
    superclasses={},  # noqa: B006, nobody changes it
):
    made = clip.ClipModel(model, INPUT, clip.tokenizer(CONFIG))
    captioned = Captioned(pixels, torch.from_numpy(split.labels), CLASSES, superclasses)
    return train_clip(made, captioned, training, precision, Checkpoint(*checkpoint))


# --- its input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before, after", [(16, 32), (32, 64), (64, 32)])
def test_preprocessing_is_pils_bicubic_resize_and_normalisation(before, after):
    # From 64 to 191: beyond, PIL also clips between its two passes.
    images = np.random.default_rng(0).integers(64, 192, (4, before, before, 3)).astype(np.uint8)
    pixels = to_input(images, UNCHANGED, CPU)
    actual = clip.preprocess(pixels, clip.Input(after, MEAN, STD))
    resized = [Image.fromarray(x).resize((after, after), Image.Resampling.BICUBIC) for x in images]
    expected = to_input(np.stack([np.asarray(x) for x in resized]), NORMALISED, CPU)
    assert actual.shape == (4, 3, after, after)
    levels = (actual - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.max() < 1.5  # PIL rounds to whole ones, twice


def test_pixels_of_the_right_size_are_only_normalised(pixels):
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(clip.preprocess(pixels, clip.Input(8, MEAN, STD)), expected)


def test_overshoot_of_the_resize_is_clamped():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    result = clip.preprocess(edge, clip.Input(32, [0.0] * 3, [1.0] * 3))
    assert result.min() == 0 and result.max() == 1


# --- zero-shot classification -------------------------------------------------------------------


def test_class_embeddings_are_the_normalised_mean_over_prompts():
    model, prompts = towers().eval(), ["a photo of {}", "{}", "the word {} written"]
    tokens = clip.tokenizer(CONFIG)
    actual = clip.class_embeddings(model, tokens, CLASSES, prompts, {})
    with torch.no_grad():
        each = [
            F.normalize(model.encode_text(tokens([p.format(c) for c in CLASSES])), dim=1)
            for p in prompts
        ]
    expected = F.normalize(torch.stack(each).mean(0), dim=1)
    torch.testing.assert_close(actual, expected)
    single = clip.class_embeddings(model, tokens, CLASSES, prompts[:1], {})
    torch.testing.assert_close(single, each[0])
    assert not torch.allclose(actual, single)


KINDS = {"one": "odd", "two": "even", "three": "odd", "four": "even"}


def test_prompts_and_captions_name_the_superclass(here, split, pixels):
    model, tokens = towers().eval(), clip.tokenizer(CONFIG)
    actual = clip.class_embeddings(model, tokens, CLASSES, ["{}, one of the {kind}"], KINDS)
    texts = ["one, one of the odd", "two, one of the even"]
    with torch.no_grad():
        expected = F.normalize(model.encode_text(tokens(texts)), dim=1)
    torch.testing.assert_close(actual[:2], expected)
    same = dict.fromkeys(CLASSES, "again")
    steps = dataclasses.replace(TRAINING, steps=3)
    written = dataclasses.replace(steps, captions=("{} again",))
    filled = dataclasses.replace(steps, captions=("{} {kind}",))
    histories = [
        fit(towers(), split, pixels, x, checkpoint=(x.captions[0], "key"), superclasses=kinds)
        for x, kinds in ((written, {}), (filled, same))
    ]
    assert histories[0] == histories[1]


def zero_shot(seed=0, scale=20.0):
    model = towers(seed).eval()
    classifier = clip.class_embeddings(
        model, clip.tokenizer(CONFIG), CLASSES, ["a photo of {}", "{}"], {}
    )
    return clip.ZeroShot(model, classifier, scale, INPUT).eval()


def test_logits_are_the_scale_times_the_cosine(pixels):
    model = zero_shot()
    with torch.no_grad():
        logits, features = model(pixels)
        embedding = model.clip.encode_image(clip.preprocess(pixels, INPUT))
    cosine = F.cosine_similarity(embedding[:, None], model.classifier[None], dim=2)
    torch.testing.assert_close(logits, 20 * cosine)
    torch.testing.assert_close(features, F.normalize(embedding, dim=1))
    assert logits.shape == (22, 4) and features.shape == (22, 16)


def save(model, path, center=None):
    record = {
        "kind": "clip",
        "model": params.to_dict(CONFIG),
        "quick_gelu": False,
        "embed_dim": 16,
        "classes": CLASSES,
        "scale": model.scale,
        "input": INPUT._asdict(),
        "center": center and center._asdict(),
        "prompts": ["a photo of {}"],
        **weights.provenance(CPU),
    }
    weights.save(path, model.state_dict(), record)
    return record


def test_a_saved_classifier_comes_back_and_takes_pixels(tmp_path, pixels, split):
    model = zero_shot(scale=12.5)
    save(model, tmp_path / "seed0")
    loaded, preprocessing = classifiers.load_classifier(tmp_path / "seed0", CPU)
    assert preprocessing.center is None
    assert loaded.expected == INPUT and not loaded.training
    # CLIP normalises by itself: its preprocessing leaves images as pixels in [0, 1].
    images = to_input(split.images, preprocessing, CPU)
    assert 0 <= images.min() and images.max() <= 1
    with torch.no_grad():
        for actual, expected in zip(loaded(images), model(pixels)):
            torch.testing.assert_close(actual, expected)
        normalised = to_input(split.images, NORMALISED, CPU)
        assert not torch.allclose(loaded(normalised).logits, model(pixels).logits, atol=0.01)


def test_a_saved_classifier_knows_how_files_are_cut_for_it(tmp_path):
    center = INPUT._replace(resize_mode="squash").center
    assert center == Center(32, 32, "bicubic", "squash")
    save(zero_shot(), tmp_path / "seed0", center)
    assert classifiers.load_classifier(tmp_path / "seed0", CPU).preprocessing.center == center


def test_weights_of_another_clip_are_refused(tmp_path):
    record = save(zero_shot(), tmp_path / "seed0")
    record["embed_dim"] = record["model"]["embed_dim"] = 8
    write_json(tmp_path / "seed0.json", {"saved_together": ["seed0"], **record})
    with pytest.raises(InputError, match=r"another model: classifier is \(4, 16\) there, \(4, 8\)"):
        classifiers.load_classifier(tmp_path / "seed0", CPU)


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
    classifier = clip.class_embeddings(
        model, clip.tokenizer(CONFIG), CLASSES, TRAINING.captions, {}
    )
    with torch.no_grad():
        trained = clip.ZeroShot(model, classifier, 1.0, INPUT).eval()
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


def test_towers_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    large = dataclasses.replace(CONFIG, text_width=65_536, text_heads=1)
    with pytest.raises(InputError, match="the towers of clip.model take .* GB of memory, 1.0"):
        clip.create_clip(large)


def test_gradients_that_do_not_fit_are_refused_before_the_training(
    here, split, pixels, monkeypatch
):
    network = towers()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**6))
    with pytest.raises(InputError, match="gradients of clip.model take .* GB of memory, 0.0 are "):
        fit(network, split, pixels, TRAINING)


@pytest.mark.parametrize("lr", [1e30, 1e45])
def test_a_clip_that_the_last_step_broke_is_an_error_and_not_saved(here, split, pixels, lr):
    broken = dataclasses.replace(TRAINING, steps=1)
    object.__setattr__(broken, "lr", lr)  # beyond what params allow
    with pytest.raises(InputError, match="clip: diverged by step 1, .*: lower clip.training.lr"):
        fit(towers(), split, pixels, broken)
    assert Checkpoint("clip", "key").load(CPU) is None


def test_a_text_that_does_not_fit_is_an_error():
    tokens_of = clip.tokenizer(CONFIG)
    assert tokens_of(["ninety-nine"]).shape == (1, 16)
    exact = "one " * 14
    assert tokens_of([exact])[0, -1] == tokens_of(["one"])[0, 2]  # the end is the last token
    with pytest.raises(InputError, match="CLIP reads 16 tokens, 'one one .*' has 17: shorten"):
        tokens_of(["one", exact + "one"])


# --- ready-made models --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small model under a name of its own, as open_clip's configuration files describe one."""
    folder = tmp_path_factory.mktemp("configs")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
        },
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny"


@pytest.fixture
def published(tiny, tmp_path, monkeypatch, server):
    """tiny's weights with QuickGELU, where open_clip's tag "ours" says they are; the model."""
    torch.manual_seed(0)
    model = open_clip.create_model(tiny, force_quick_gelu=True)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tiny.pt")
    url = server.url("/tiny.pt", Answer(body=(tmp_path / "tiny.pt").read_bytes()))
    monkeypatch.setitem(registry._PRETRAINED, tiny, {"ours": {"url": url, "quick_gelu": True}})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # below it open_clip keeps what it downloads
    return model.eval()


def same_classifier(actual, expected):
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        texts = clip.tokenizer("tiny")(CLASSES)
        torch.testing.assert_close(
            actual.eval().encode_image(pixels), expected.encode_image(pixels)
        )
        torch.testing.assert_close(actual.encode_text(texts), expected.encode_text(texts))


def test_pretrained_weights_are_downloaded_and_get_their_quickgelu(tiny, published, recwarn):
    model, quick_gelu = clip.pretrained(tiny, "ours")
    assert quick_gelu
    same_classifier(model, published)
    assert not [warning for warning in recwarn if "QuickGELU" in str(warning.message)]


def test_a_pretrained_classifier_comes_back_from_disk(tiny, published, tmp_path, caplog):
    model, quick_gelu = clip.pretrained(tiny, "ours")
    expected = clip.input_of(model)
    classifier = clip.class_embeddings(model, clip.tokenizer(tiny), CLASSES, ["a {}"], {})
    record = {
        "kind": "clip",
        "model": tiny,
        "quick_gelu": quick_gelu,
        "embed_dim": 16,
        "classes": CLASSES,
        "scale": 100.0,
        "input": expected._asdict(),
        "center": None,
        "prompts": ["a {}"],
        **weights.provenance(CPU),
    }
    zero_shot = clip.ZeroShot(model, classifier, 100.0, expected).eval()
    weights.save(tmp_path / "seed0", zero_shot.state_dict(), record)
    caplog.clear()
    loaded, _ = classifiers.load_classifier(tmp_path / "seed0", CPU)
    pixels = torch.rand(3, 3, 20, 20)
    with torch.no_grad():
        for actual, wanted in zip(loaded(pixels), zero_shot(pixels)):
            torch.testing.assert_close(actual, wanted)
    assert not caplog.records  # open_clip's warning of random weights would be false here


@pytest.mark.parametrize(
    ("model", "tag", "said"),
    [
        ("tiny", "theirs", "clip.tag is 'theirs': tiny has ours; see open_clip.list_pretrained"),
        ("huge", "ours", "clip.tag is 'ours': huge has none; see open_clip.list_pretrained"),
    ],
)
def test_unknown_models_and_tags_are_refused(published, model, tag, said):
    with pytest.raises(InputError, match=said):
        clip.pretrained(model, tag)


def test_weights_that_cannot_be_had_are_one_line(tiny, published, monkeypatch, server):
    url = server.url("/absent.pt", Answer(status=404))
    monkeypatch.setitem(registry._PRETRAINED, tiny, {"ours": {"url": url}})
    with pytest.raises(InputError) as caught:
        clip.pretrained(tiny, "ours")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(
        f"the weights of clip.model tiny, clip.tag ours could not be had from {url}: fetch the "
        "file where there is a network and name it with clip.source: checkpoint, clip.tag and "
        "clip.path ("
    )


def test_without_network_the_paper_s_clip_is_one_line(tmp_path):
    code = "from richkd.clip import zero_shot\nzero_shot.pretrained('ViT-L-14', 'openai')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=offline, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(
        "richkd.base.errors.InputError: the weights of clip.model ViT-L-14, clip.tag openai could "
        "not be had from timm/vit_large_patch14_clip_224.openai"
    )


def test_a_local_checkpoint_is_read(tiny, published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "plain.pt")
    for file in ("tiny.pt", "plain.pt"):
        model, quick_gelu = clip.from_checkpoint(tiny, "ours", tmp_path / file)
        assert quick_gelu
        same_classifier(model, published)
    model, quick_gelu = clip.from_checkpoint(tiny, None, tmp_path / "tiny.pt")
    assert not quick_gelu
    with pytest.raises(AssertionError):  # the same names, another activation
        same_classifier(model, published)


def test_a_temporary_copy_finds_the_checkpoint_of_the_checkout(
    tiny, published, tmp_path, monkeypatch
):
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    known = sha256(tmp_path / "tiny.pt")
    p = params.CheckpointClip(
        source="checkpoint", model=tiny, tag="ours", path="tiny.pt", sha256=known,
        prompts=("a {}",), logit_scale="model",
    )  # fmt: skip
    network, _, files = clip.use_ready_made(p)
    same_classifier(network, published)
    assert files == {"tiny.pt": known}  # the record of the checkout
    with pytest.raises(InputError) as caught:
        clip.use_ready_made(dataclasses.replace(p, path="gone.pt"))
    both = f"{copy}/gone.pt or {tmp_path}/gone.pt"
    assert str(caught.value) == f"clip.path: {both} could not be read: No such file or directory"


def test_a_checkpoint_s_tag_says_how_images_are_prepared(tiny, published, tmp_path, monkeypatch):
    ours = {
        "mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "interpolation": "bilinear",
        "resize_mode": "squash", "fill_color": 7,
    }  # fmt: skip
    monkeypatch.setitem(registry._PRETRAINED, tiny, {"ours": ours})
    model, _ = clip.from_checkpoint(tiny, "ours", tmp_path / "tiny.pt")
    assert clip.input_of(model) == clip.Input(32, *ours.values())
    model, _ = clip.from_checkpoint(tiny, None, tmp_path / "tiny.pt")
    assert clip.input_of(model).mean == open_clip.OPENAI_DATASET_MEAN


def test_local_checkpoints_that_do_not_fit_are_one_line(tiny, published, tmp_path, evil):
    state = published.state_dict()
    torch.save({**state, "text_projection": torch.zeros(3, 3)}, tmp_path / "other.pt")
    torch.save({k: v for k, v in state.items() if k != "text_projection"}, tmp_path / "less.pt")
    whole = (tmp_path / "tiny.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": state, "evil": evil}, tmp_path / "evil.pt")
    torch.save({**state, "text_projection": state["text_projection"] / 0}, tmp_path / "nan.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as OpenAI publishes its models
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    reasons = {
        "other.pt": "holds no weights of tiny: .*size mismatch for text_projection",
        "less.pt": 'holds no weights of tiny: .*Missing key.* "text_projection"',
        "cut.pt": "is not a file of weights alone, or damaged",
        "evil.pt": "holds an object of posix.system, which is not read",
        "script.pt": "is a TorchScript archive",
        "nan.pt": "text_projection holds NaN or infinity",
        "absent.pt": "could not be read: No such file",
    }
    for file, reason in reasons.items():
        with pytest.raises(InputError, match=f"{file}:? {reason}") as caught:
            clip.from_checkpoint(tiny, "ours", tmp_path / file)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match="clip.model is 'huge': must be one of open_clip.list_models"
    ):
        clip.from_checkpoint("huge", None, tmp_path / "tiny.pt")


def test_a_tokenizer_that_cannot_be_had_is_one_line(tiny, monkeypatch):
    config = open_clip.get_model_config(tiny)
    config["text_cfg"]["hf_tokenizer_name"] = "nobody/nothing"
    monkeypatch.setattr("open_clip.factory.get_model_config", lambda name: config)
    with pytest.raises(InputError, match="tiny's tokenizer could not be had: ") as caught:
        clip.tokenizer(tiny)
    assert "\n" not in str(caught.value)


def test_no_images_are_no_features(tiny):
    """`dataset.validation: 0`, through a transformer."""
    model = clip.create_clip(tiny).eval()
    empty = clip.ZeroShot(model, torch.zeros(4, 16), 1.0, clip.input_of(model))
    logits, features = predict(empty, torch.zeros(0, 3, 20, 20), 100)
    assert logits.shape == (0, 4) and features.shape == (0, 16)


def test_imagenet80_are_open_clip_s_templates():
    prompts = clip.templates("imagenet80")
    assert len(prompts) == 80 and all(prompt.count("{}") == 1 for prompt in prompts)
    assert prompts[0].format("cat") == open_clip.OPENAI_IMAGENET_TEMPLATES[0]("cat")
    assert clip.templates(("a {}",)) == ["a {}"]


@pytest.mark.slow
def test_features_agree_with_open_clip_s_own_preprocessing(photographs):
    """On 256 test images: PIL prepares each image, we prepare the whole batch."""
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    model.visual.eval()
    images = photographs.images[:256]
    pixels = to_input(images, UNCHANGED, CPU)
    each = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        ours = model.encode_image(clip.preprocess(pixels, clip.input_of(model)))
        cosine = F.cosine_similarity(ours, model.encode_image(each))
    assert cosine.min() > 0.9995


@pytest.mark.cuda
def test_on_a_gpu_half_precision_is_close(pixels):
    model = zero_shot()
    with torch.inference_mode():
        expected = model(pixels)
        actual = model.cuda()(pixels.cuda())
    assert actual.logits.dtype == actual.features.dtype == torch.float32
    cosine = F.cosine_similarity(actual.features.cpu(), expected.features)
    assert cosine.min() > 0.999
