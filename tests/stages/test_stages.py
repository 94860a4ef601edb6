"""Stages on sources that the other tests do not run end to end, in a small working folder."""

import hashlib
import json
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import small_imagenet
import torch
import trees
import yaml
from PIL import Image, ImageOps
from safetensors.torch import load_file
from scipy.special import softmax
from serving import Answer
from torchvision.transforms import functional as tv

import stages.alone
import stages.cache
import stages.calibrate
import stages.clip
import stages.corrupt
import stages.distill
import stages.evaluate
import stages.evaluate_fused
import stages.prepare
import stages.teacher
from richkd import models, params
from richkd.base.errors import InputError
from richkd.base.files import sha256, write_array, write_json
from richkd.base.records import read_json
from richkd.classifiers import Loaded
from richkd.data import cifar_c, corrupted
from richkd.data import folder as folders
from richkd.data.corruptions import corrupt
from richkd.data.dataset import CORRUPTED, Info, Split, load_split, save_info, save_split
from richkd.evaluate.seeds import write_training
from richkd.params import At, Ce
from richkd.teachers.fusion import Recipe
from richkd.teachers.online import Online
from richkd.train import seeds
from richkd.train.seeds import Job, TrainingData, train_seeds
from richkd.train.terms import make_objective

ROOT = Path(__file__).parents[2]
CLASSES = ["apple", "maple tree", "sea", "wolf"]
NUMBERS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


@pytest.fixture
def folder(here, monkeypatch):
    """Prepared images as `prepare` leaves them, of four classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "downloads"))
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("validation", 8), ("test", 20), ("captioned", 0)):
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        save_split(f"data/{name}.safetensors", Split(images, np.arange(count) % 4))
    save_info("data/info.json", Info(name="cifar100", classes=CLASSES, **NUMBERS))
    return here


def write(**sections):
    """params.yaml: the preset cifar100 with other sections."""
    preset = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(preset | sections))


# --- prepare ------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 200, (5, 6, 7, 3)).astype(np.uint8)
    mean, std = stages.prepare.statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))


# --- teacher ------------------------------------------------------------------------------------


def checkpoint(path, min_accuracy=0.0):
    return {
        "source": "checkpoint", "arch": "resnet8", "path": str(path), "sha256": sha256(path),
        "min_accuracy": min_accuracy, **NUMBERS,
    }  # fmt: skip


def test_a_ready_made_teacher_is_saved_tested_and_refused_below_the_bound(folder, capsys):
    torch.save(models.create("resnet8", 4).state_dict(), "x.pth")
    write(teacher=checkpoint("x.pth"))
    stages.teacher.main()
    tested = read_json("metrics/teacher.json")["test_accuracy"]
    assert f"is right on {100 * tested:.2f} % of the test images" in capsys.readouterr().out
    assert 0 <= read_json("metrics/train/teacher.json")["validation_accuracy"]["mean"] <= 1
    curves = pd.read_csv("metrics/curves/teacher.csv")
    assert list(curves) == ["epoch", "validation_accuracy", "seed"] and curves.empty
    record = read_json("models/teacher/seed0.json")
    assert record["mean"] == NUMBERS["mean"] and record["data"] == {"x.pth": sha256("x.pth")}
    assert "min_accuracy" not in record["params"]["teacher"]
    write(teacher=checkpoint("x.pth", 1.0))
    with pytest.raises(
        InputError, match=rf"test images is {tested:.4f}, teacher.min_accuracy is 1.0"
    ):
        stages.teacher.main()


def test_a_trained_teacher_below_the_bound_is_refused(folder):
    digits = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())
    write(teacher=digits["teacher"] | {"epochs": 1, "min_accuracy": 1.0})
    with pytest.raises(InputError, match="teacher.min_accuracy is 1.0"):
        stages.teacher.main()


# --- clip ---------------------------------------------------------------------------------------


def test_a_clip_from_a_file_becomes_a_classifier_and_a_table(folder):
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
    Path("small.json").write_text(json.dumps(config))
    open_clip.add_model_config(Path("small.json").absolute())
    torch.save(open_clip.create_model("small").state_dict(), "small.pt")
    clip = {
        "source": "checkpoint", "model": "small", "tag": None, "path": "small.pt",
        "sha256": sha256("small.pt"), "prompts": "imagenet80", "logit_scale": 50.0,
    }  # fmt: skip
    write(clip=clip)
    stages.clip.main()
    record = read_json("models/clip/seed0.json")
    assert record["scale"] == 50 and len(record["prompts"]) == 80 and record["classes"] == CLASSES
    assert record["data"]["small.pt"] == clip["sha256"] and "seed" not in record
    stages.cache.main("clip")
    assert np.load("cache/clip/logits-000.npy").shape == (8, 4)
    assert len(read_json("metrics/cache/clip.json")["single_prompt_accuracy"]) == 81
    write(clip=clip | {"sha256": "0" * 64})
    with pytest.raises(
        InputError, match="clip.path: small.pt has sha256:.*, must have sha256:0000"
    ):
        stages.clip.main()


# --- corrupt ------------------------------------------------------------------------------------

SETS = {"names": ["frost", "fog"], "severities": [3, 1]}


@pytest.fixture
def published(folder):
    """A folder as CIFAR-100-C's tar unpacks to: the pixels of a set are its severity."""
    path = folder / "CIFAR-100-C"
    path.mkdir()
    severities = np.repeat(np.arange(1, 6), 20)
    np.save(path / "labels.npy", np.tile(np.arange(20) % 4, 5))
    for name in SETS["names"]:
        images = np.broadcast_to(severities[:, None, None, None], (100, 32, 32, 3))
        np.save(path / f"{name}.npy", images.astype(np.uint8))
    return path


def test_published_sets_are_taken_from_a_folder(published):
    write(corruptions={"source": "path", "path": str(published), **SETS})
    stages.corrupt.main()
    for name in SETS["names"]:
        images = np.load(f"data/corrupted/{name}.npy")
        assert (
            images.shape == (40, 32, 32, 3) and images[:, 5, 5, 1].tolist() == [3] * 20 + [1] * 20
        )


def test_a_temporary_copy_takes_the_sets_of_the_checkout(published, monkeypatch):
    write(corruptions={"source": "path", "path": "CIFAR-100-C", **SETS})
    copy = published.parent / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    for name in ("params.yaml", "data"):
        Path(name).rename(copy / name)
    monkeypatch.chdir(copy)
    stages.corrupt.main()
    assert np.load("data/corrupted/fog.npy")[:, 0, 0, 0].tolist() == [3] * 20 + [1] * 20


def test_a_tar_that_is_not_the_published_one_is_refused(published, server):
    with tarfile.open("other.tar", "w") as tar:
        tar.add(published, "CIFAR-100-C")
    write(corruptions={"source": "path", "path": "other.tar", **SETS})
    with pytest.raises(
        InputError, match="corruptions.path: other.tar has md5:.*, must have md5:11f0"
    ):
        stages.corrupt.main()
    url = server.url("/CIFAR-100-C.tar", Answer(body=Path("other.tar").read_bytes()))
    write(corruptions={"source": "download", "urls": [url], **SETS})
    with pytest.raises(InputError, match="CIFAR-100-C.tar could not be downloaded: .*has md5:"):
        stages.corrupt.main()
    assert not Path("data/corrupted").exists()


def test_published_sets_are_downloaded(published, server, monkeypatch):
    with tarfile.open("sets.tar", "w") as tar:
        tar.add(published, "CIFAR-100-C")
    body = Path("sets.tar").read_bytes()
    official = cifar_c.Official("CIFAR-100-C.tar", f"md5:{hashlib.md5(body).hexdigest()}")
    monkeypatch.setitem(cifar_c.OFFICIAL, "cifar100", official)
    urls = [server.url("/gone", Answer(status=404)), server.url("/sets.tar", Answer(body=body))]
    write(corruptions={"source": "download", "urls": urls, **SETS})
    stages.corrupt.main()
    assert np.load("data/corrupted/fog.npy")[:, 0, 0, 0].tolist() == [3] * 20 + [1] * 20


@pytest.fixture
def photographs(folder, monkeypatch):
    """A folder with stand-ins for the photographs of ice, whose checksums hold in this test."""
    path, rng = folder / "ice", np.random.default_rng(0)
    path.mkdir()
    for name in corrupted.PHOTOGRAPHS:
        trees.photograph(1, rng, 300, 400).save(path / name)
        monkeypatch.setitem(corrupted.PHOTOGRAPHS, name, f"sha256:{sha256(path / name)}")
    return path


FROST = {"source": "generate", "names": ["frost"], "severities": [5, 1], "seed": 2}


def frosted(given):
    clean = load_split("data/test.safetensors").images
    return np.concatenate([corrupt(clean, "frost", x, 2, "cifar", given) for x in (5, 1)])


def test_frost_of_photographs_in_a_folder(photographs, capsys):
    write(corruptions=FROST | {"frost": str(photographs)})
    stages.corrupt.main()
    given = []
    for name in corrupted.PHOTOGRAPHS:
        with Image.open(photographs / name) as image:
            given.append(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(np.load(CORRUPTED / "frost.npy"), frosted(given))
    assert (CORRUPTED / "frost.txt").read_text() == "the benchmark's photographs\n"
    assert "frost: the benchmark's photographs\n" in capsys.readouterr().out


def test_photographs_are_found_from_a_temporary_copy(photographs, monkeypatch):
    """As `dvc exp run --temp` makes one: without the files that git does not know."""
    copy = Path(".dvc/tmp/exps/temporary")
    shutil.copytree("data", copy / "data")
    assert photographs.name == "ice"
    monkeypatch.chdir(copy)
    write(corruptions=FROST | {"frost": "ice"})
    stages.corrupt.main()
    assert (CORRUPTED / "frost.txt").read_text() == "the benchmark's photographs\n"


def test_frost_of_textures_needs_no_photographs(folder, capsys):
    write(corruptions=FROST)
    stages.corrupt.main()
    np.testing.assert_array_equal(np.load(CORRUPTED / "frost.npy"), frosted(None))
    assert (CORRUPTED / "frost.txt").read_text() == "generated textures\n"
    assert "frost: generated textures\n" in capsys.readouterr().out


def test_frost_of_downloaded_photographs(photographs, server, monkeypatch):
    for name in corrupted.PHOTOGRAPHS:
        url = server.url(f"/ice/{name}", Answer(body=(photographs / name).read_bytes()))
    monkeypatch.setattr(corrupted, "PHOTOGRAPHS_URL", url.rpartition("/")[0])
    write(corruptions=FROST | {"frost": str(photographs)})
    stages.corrupt.main()
    expected = np.load(CORRUPTED / "frost.npy")
    write(corruptions=FROST | {"frost": "download"})
    stages.corrupt.main()
    np.testing.assert_array_equal(np.load(CORRUPTED / "frost.npy"), expected)
    stages.corrupt.main()
    assert len(server.requests) == 5  # the second time all are in the cache folder


def test_photographs_that_are_missing_or_others_are_refused(photographs, server, monkeypatch):
    write(corruptions=FROST | {"frost": str(photographs)})
    (photographs / "frost4.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="frost: .*frost4.jpg has sha256:e3b0.*, must have sha256"):
        stages.corrupt.main()
    (photographs / "frost4.jpg").unlink()
    with pytest.raises(InputError, match="corruptions.frost: .*frost4.jpg could not be read: No s"):
        stages.corrupt.main()
    url = server.url("/frost1.png", Answer(status=404))
    monkeypatch.setattr(corrupted, "PHOTOGRAPHS_URL", url.rpartition("/")[0])
    write(corruptions=FROST | {"frost": "download"})
    with pytest.raises(
        InputError, match="frost1.png could not be downloaded: .* set corruptions.frost to"
    ):
        stages.corrupt.main()
    write(corruptions=FROST | {"frost": "gone", "names": ["contrast"]})  # without frost: not read
    stages.corrupt.main()
    assert [path.name for path in CORRUPTED.iterdir()] == ["contrast.npy"]


WNIDS = trees.WNIDS[:2]


@pytest.fixture
def files(here):
    """The test images of a tree as a manifest, odd ones too, and a function to write params."""
    tree = trees.imagenet(here / "tree", 5, 2, WNIDS)
    test, unreadable = folders.scan(tree, folders.in_folders(tree / "train", WNIDS), "train")
    assert len(test.labels) == 9 and len(unreadable) == 1
    save_split("data/test.safetensors", test)
    save_info("data/info.json", Info(name="imagenet", classes=["a", "b"], folders=WNIDS, **NUMBERS))
    Path("weights").write_bytes(b"")
    preset = small_imagenet.params(tree, Path("weights"))

    def write(**sections):
        Path("params.yaml").write_text(yaml.safe_dump(preset | sections))

    write.test = test
    return write


GENERATED = {
    "source": "generate",
    "seed": 3,
    "names": ["gaussian_noise", "fog"],
    "severities": [4, 2],
}


def test_files_are_cut_and_corrupted_with_imagenets_constants(files):
    files(corruptions=GENERATED)
    stages.corrupt.main()
    middles = []
    for path in files.test.paths:
        with Image.open(Path(files.test.root, path)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        middles.append(np.asarray(tv.center_crop(tv.resize(upright, 56), 48)))
    for name in GENERATED["names"]:
        found = np.load(CORRUPTED / f"{name}.npy")
        expected = [
            corrupt(np.stack(middles), name, severity, 3, "imagenet") for severity in (4, 2)
        ]
        np.testing.assert_array_equal(found, np.concatenate(expected))


@pytest.mark.parametrize("seed", range(20))
def test_middles_are_those_that_models_see_of_the_clean_images(here, seed):
    """To the pixel, at any sizes: torchvision rounds sides down and margins to even."""
    rng = np.random.default_rng(seed)
    image = trees.photograph(seed, rng)
    image.save("x.png")
    size = int(rng.integers(16, 60))
    views = SimpleNamespace(size=size, resize=int(rng.integers(size, 70)))
    test = SimpleNamespace(root=".", paths=["x.png"], labels=np.zeros(1, int))
    expected = tv.center_crop(tv.resize(image, views.resize), size)
    np.testing.assert_array_equal(corrupted.centers(test, views).images[0], expected)


def test_without_room_nothing_is_made(files, monkeypatch):
    files(corruptions=GENERATED)
    one = 2 * 9 * 48**2 * 3  # severities, images, pixels
    memory = SimpleNamespace(available=3 * one)
    disk = SimpleNamespace(free=4 * one)
    monkeypatch.setattr(corrupted.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(corrupted.shutil, "disk_usage", lambda _: disk)
    corrupted.check_room(one, 2 * one)
    monkeypatch.setattr(corrupted, "corrupt", lambda *_: pytest.fail("corrupted"))
    lower = "name fewer corruptions.names or severities, or set corruptions.source: path"
    memory.available -= 1
    with pytest.raises(InputError, match=f"need 0.0 GB of memory, 0.0 are free: {lower}"):
        stages.corrupt.main()
    memory.available, disk.free = 100e9, 1e9
    with pytest.raises(
        InputError, match=f"need 4.0 GB of disk, with DVC's copy, 1.0 are free: {lower}"
    ):
        corrupted.check_room(10**9, 2 * 10**9)
    disk.free = 4 * one - 1
    with pytest.raises(InputError, match="GB of disk"):
        stages.corrupt.main()
    assert not CORRUPTED.exists()


def test_published_files_stay_where_they_are(files):
    trees.corrupted(Path("imagenet-c"), Path("tree"), ["fog"], [1, 3], 32)
    test, _ = folders.scan(Path("tree"), folders.in_folders(Path("tree/val"), WNIDS), "val")
    save_split("data/test.safetensors", test)
    files(
        corruptions={"source": "path", "path": "imagenet-c", "names": ["fog"], "severities": [3, 1]}
    )
    stages.corrupt.main()
    assert [path.name for path in CORRUPTED.iterdir()] == ["fog.safetensors"]
    found = load_split(CORRUPTED / "fog.safetensors")
    ends = [path.removeprefix("val/") for path in test.paths]
    assert found.paths == [f"fog/{severity}/{end}" for severity in (3, 1) for end in ends]
    assert found.root == "imagenet-c" and found.labels.tolist() == test.labels.tolist() * 2


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_where_a_path_leads_nowhere_corruptions_are_skipped(request, kind, capsys):
    write_params = request.getfixturevalue("files") if kind == "files" else write
    if kind == "arrays":
        request.getfixturevalue("folder")
    (CORRUPTED / "x").mkdir(parents=True)  # of a run before
    write_params(corruptions={"source": "path", "path": "../gone", **SETS})
    stages.corrupt.main()
    assert {path.name: path.read_text() for path in CORRUPTED.iterdir()} == {
        "skipped.txt": "nothing is at ../gone\n"
    }
    assert "corrupted images are skipped: nothing is at ../gone" in capsys.readouterr().out
    write_params(
        corruptions={"source": "generate", "seed": 0, "names": ["contrast"], "severities": [1]}
    )
    stages.corrupt.main()
    assert [path.name for path in CORRUPTED.iterdir()] == ["contrast.npy"]


# --- evaluate -----------------------------------------------------------------------------------


def test_the_fused_teacher_of_what_there_is(folder):
    """One further test set, and no corrupted images."""
    write()
    Recipe(0.25, 0.5, {"teacher": 1.0, "clip": 1.0}, {"teacher": "1", "clip": "2"}).save()
    save_split("data/shifted/v2.safetensors", load_split("data/test.safetensors"))
    write_json(
        "data/shifted/sets.json",
        {"v2": {"images": 20, "classes": [0, 1, 2, 3]}, "r": {"skipped": "x"}},
    )
    CORRUPTED.mkdir()
    (CORRUPTED / "skipped.txt").write_text("nothing is at x\n")
    rng, logits = np.random.default_rng(0), {}
    for name in ("teacher", "clip"):
        for part in ("validation", "test", "shifted/v2"):
            count = 8 if part == "validation" else 20
            logits[name, part] = rng.normal(size=(1, count, 4)).astype(np.float32)
            write_array(f"predictions/{name}/{part}.npy", logits[name, part])
        write_array(f"predictions/{name}/corrupted.npy", np.empty((1, 0, 5, 20, 4), np.float16))
        write_json(f"predictions/{name}/seeds.json", ["seed3"])
    stages.evaluate_fused.main()
    for part in ("validation", "test", "shifted/v2"):
        expected = 0.25 * logits["teacher", part] + 0.75 * logits["clip", part]
        np.testing.assert_allclose(
            np.load(f"predictions/fused/{part}.npy"), expected, rtol=1e-5, atol=1e-6
        )
    assert np.load("predictions/fused/corrupted.npy").shape == (1, 0, 5, 20, 4)
    metrics = read_json("metrics/evaluate/fused.json")
    assert list(metrics) == ["top1", "top5", "balanced_accuracy", "shifted_v2"]
    assert list(metrics["top1"]) == ["mean", "seed3"]


# --- calibrate ----------------------------------------------------------------------------------


def predicted(corruptions, severities):
    """The logits of seeds 0 and 1 on the folder's images; and on the corrupted ones, float16."""
    write_json("predictions/x/seeds.json", ["seed0", "seed1"])
    rng, random = np.random.default_rng(1), {}
    for name, shape in (
        ("validation", (8,)), ("test", (20,)), ("corrupted", (corruptions, severities, 20)),
    ):  # fmt: skip
        random[name] = rng.normal(size=(2, *shape, 4)).astype(np.float32) * 3
        kind = np.float16 if name == "corrupted" else np.float32
        write_array(f"predictions/x/{name}.npy", random[name].astype(kind))
    return random["test"], random["corrupted"].astype(np.float16).astype(float)


def scores(logits, labels):
    """NLL and Brier score, worked out anew."""
    probabilities = softmax(logits.reshape(-1, 4).astype(float), axis=1)
    truth = np.eye(4)[np.broadcast_to(labels, logits.shape[:-1]).ravel()]
    return [
        -np.log((probabilities * truth).sum(1)).mean(),
        ((probabilities - truth) ** 2).sum(1).mean(),
    ]


@pytest.mark.parametrize(
    ("most", "step"), [(10**9, 1), (3 * 2 * 20 * 4, 1), (3 * 2 * 20 * 4 - 1, 2), (200, 3), (1, 480)]
)
def test_of_very_many_corrupted_images_every_nth_is_looked_at(folder, monkeypatch, most, step):
    monkeypatch.setattr(stages.calibrate, "MAX_CORRUPTED_LOGITS", most)
    write()
    clean, corrupted = predicted(3, 2)
    stages.calibrate.main("x")
    found, labels = read_json("metrics/calibrate/x.json"), np.arange(20) % 4
    for run in range(2):
        for data, expected in (
            ("clean", scores(clean[run], labels)),
            ("corrupted", scores(corrupted[run, :, :, ::step], labels[::step])),
        ):
            assert [found[data][key][f"seed{run}"] for key in ("nll", "brier")] == pytest.approx(
                expected
            )
    curves = pd.read_csv("metrics/calibrate/x.csv")
    counts = curves.groupby(["run", "data"])["count"].sum()
    assert counts.to_dict() == {
        (run, data): count
        for run in range(2)
        for data, count in (("clean", 20), ("corrupted", 3 * 2 * len(labels[::step])))
    }


def test_without_corrupted_images_the_clean_ones_alone_are_looked_at(folder):
    write()
    clean, _ = predicted(0, 2)
    stages.calibrate.main("x")
    found = read_json("metrics/calibrate/x.json")
    assert list(found) == ["clean"]
    expected = scores(clean[0], np.arange(20) % 4)
    assert [found["clean"][key]["seed0"] for key in ("nll", "brier")] == pytest.approx(expected)
    assert found["clean"]["temperature"]["seed0"] > 0
    assert set(pd.read_csv("metrics/calibrate/x.csv").data) == {"clean"}


# --- training -----------------------------------------------------------------------------------


STUDENT = params.Training(
    arch="resnet8", epochs=2, batch_size=8, lr=0.1, schedule="onecycle", milestones=(),
    momentum=0.9, weight_decay=0.0,
)  # fmt: skip


def training_data(**runtime):
    usual = {"device": "cpu", "precision": "fp32", "deterministic": False, "step": "auto"}
    views = params.PaddedCrops(augmentation="padded_crop", pad=1, flip=False)
    return TrainingData(
        views, params.Runtime(**usual | {"seeds_at_once": 1, "tf32": False} | runtime)
    )


def test_tf32_is_for_training(folder):
    for wanted in (True, False):
        training_data(tf32=wanted)
        assert torch.backends.cuda.matmul.allow_tf32 == wanted


def test_students_on_maps_side_by_side_are_those_trained_alone(folder):
    """Their teacher is one network, whose hooks must not see the maps of another student."""
    job = Job("at", STUDENT, [0, 1], {}, [])

    def states(at_once):
        data = training_data(seeds_at_once=at_once)
        torch.manual_seed(0)
        network = models.create("resnet8", data.num_classes).eval()
        teacher = Online(Loaded(network, data.preprocessing), maps=True)
        options = {"ce": Ce(), "at": At(weight=1000.0, p=2.0)}
        train_seeds(
            job, data, write_training, teacher,
            lambda model, own: make_objective(options, model, own, data.train.labels),
        )  # fmt: skip
        return [load_file(f"models/at/seed{seed}.safetensors") for seed in job.seeds]

    for alone, together in zip(states(1), states(2), strict=True):
        assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_curves_are_written_while_seeds_train_and_the_best_test_epoch_is_told(folder, monkeypatch):
    monkeypatch.setattr(seeds, "SHOWN", 0.0)
    written = []

    def write(name, curves, results):
        written.append((len(curves), results))
        if results is None:
            write_training(name, curves, results)
            assert len(pd.read_csv("metrics/curves/ce.csv")) == len(curves)

    data = training_data(seeds_at_once=2)
    job = Job("ce", STUDENT, [0, 1, 2], {}, [])
    assert seeds.threads_each(job, data, 2) == max(1, torch.get_num_threads() // 2)
    assert seeds.threads_each(job, data, 1) is None
    network = models.create("resnet8", data.num_classes)
    plain, with_maps = (
        Online(Loaded(network, data.preprocessing), maps=maps) for maps in (False, True)
    )
    assert seeds.threads_each(job, data, 2, plain) is not None
    assert seeds.threads_each(job, data, 2, with_maps) is None
    train_seeds(job, data, write)
    rows = [rows for rows, _ in written]  # two seeds may end an epoch at the same time
    assert rows == sorted(rows) and rows[-3:] == [5, 6, 6] and len(rows) == 7
    results = written[-1][1]
    assert list(results) == ["seed0", "seed1", "seed2"]
    for found in results.values():
        assert 0 <= found["best_test_top1"] <= 1 and found["best_test_epoch"] in (1, 2)
    shutil.rmtree(".resume")
    train_seeds(job, training_data(), write)
    if torch.get_num_threads() == 1:  # rounding follows the number of threads
        assert written[-1][1] == results


def test_a_full_device_says_what_to_lower(folder, monkeypatch):
    data = training_data()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("richkd.train.seeds.Run", full)
    said = "out of memory: lower batch_size, runtime.seeds_at_once or the num_negatives .* 9 GiB"
    with pytest.raises(InputError, match=said):
        train_seeds(Job("ce", STUDENT, [0], {}, []), data, write=full)


# --- what a command may name --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "word", "said"),
    [
        (stages.distill, "L2", "error: called with L2: name one of F, L, LF, kd"),
        (stages.distill, None, "error: called with nothing: name one of F, L, LF, kd"),
        (stages.calibrate, "x", "name one of teacher, clip, fused, ce, F, L, LF, kd"),
        (
            stages.evaluate,
            "fused",
            "called with fused: name one of teacher, clip, ce, F, L, LF, kd",
        ),
        (stages.cache, "fused", "error: called with fused: name one of teacher, clip"),
        (stages.alone, "ce", "error: called with ce: takes no word"),
    ],
)
def test_a_name_that_a_stage_does_not_know_is_one_line(folder, monkeypatch, stage, word, said):
    write()
    monkeypatch.setattr(sys, "argv", ["x", *([word] if word else [])])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(stage.__file__, run_name="__main__")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_stage_removes_what_killed_ones_have_not_finished(folder, monkeypatch, capsys):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    host = platform.node().replace(".", "-")
    part = Path(f"metrics/evaluate/.x.json.{host}.{int(ended.stdout)}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    monkeypatch.setattr(sys, "argv", ["stages.x"])
    stages.run(lambda: print("the stage"))
    assert not part.exists()
    assert (
        "unfinished files of killed runs are removed: 1, metrics/evaluate/.x.json."
        in capsys.readouterr().out
    )
