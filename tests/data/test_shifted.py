"""Further test sets: labelled as the training images, or skipped, or refused in one line."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_imagenet
import trees
import yaml

import stages.shift
from richkd.base.errors import InputError
from richkd.data.dataset import SHIFTED, Info, Manifest, Split, load_split, save_info, save_split
from richkd.data.folder import wnids
from richkd.data.shifted import read_shifted

CLASSES = trees.WNIDS[:4]
FILES = Info(
    name="imagenet", classes=["a", "b", "c", "d"], mean=[0.5] * 3, std=[0.2] * 3, folders=CLASSES
)
ARRAYS = Info(name="cifar10", classes=["a", "b", "c", "d"], mean=[0.5] * 3, std=[0.2] * 3)
OTHER = "n01484850"  # of ImageNet, and not in the data set
TEST = Split(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64))


def numbered(wnid):
    return str(wnids().index(wnid))


def read(path, info):
    return read_shifted(path, info, TEST)


def refusal(path, info):
    with pytest.raises(InputError) as caught:
        read(path, info)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------


def test_some_classes_by_their_folders(tmp_path, capsys):
    """As ImageNet-R, -A and -Sketch: the labels are those of the data set."""
    trees.shifted(tmp_path / "r", {CLASSES[3]: 3, CLASSES[1]: 1, OTHER: 0})
    (tmp_path / "r/README.txt").write_text("not a class")
    found = read(str(tmp_path / "r"), FILES)
    assert isinstance(found, Manifest)
    assert found.labels.tolist() == [1] * 3 + [3] * 3
    assert found.paths == [f"r/{CLASSES[label]}/{i}.png" for label in (1, 3) for i in range(3)]
    assert all(Path(found.root, path).is_file() for path in found.paths)
    said = f"{tmp_path}/r: 1 classes that are not in the data set are left out"
    assert said in capsys.readouterr().out


def test_classes_by_their_numbers(tmp_path, capsys):
    """As ImageNet-V2, where 10 comes before 2."""
    trees.shifted(
        tmp_path / "v2", {numbered(wnid): i for i, wnid in enumerate(CLASSES)} | {"999": 0, "17": 1}
    )
    found = read(str(tmp_path / "v2"), FILES)
    names = [Path(path).parent.name for path in found.paths]
    assert names == sorted(names) and len(names) == 12
    assert [CLASSES[label] for label in found.labels] == [wnids()[int(name)] for name in names]
    assert "2 classes that are not in the data set are left out" in capsys.readouterr().out


def test_numbers_are_names_where_the_data_set_is_another(tmp_path):
    trees.shifted(tmp_path / "x", {"7": 0, "12": 1})
    info = Info(
        name="folder", classes=["a", "b"], mean=[0.5] * 3, std=[0.2] * 3, folders=["12", "7"]
    )
    found = read(str(tmp_path / "x"), info)
    assert found.labels.tolist() == [0] * 3 + [1] * 3 and found.paths[0] == "x/12/0.png"


def test_all_classes_say_nothing(tmp_path, capsys):
    trees.shifted(tmp_path / "r", {wnid: i for i, wnid in enumerate(CLASSES)})
    assert len(read(f"{tmp_path}/r/", FILES).labels) == 12
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("folders", [[OTHER, "x"], ["999", "998"], []])
def test_none_of_the_classes_is_refused(tmp_path, folders):
    trees.shifted(tmp_path / "x", dict.fromkeys(folders, 0))
    (tmp_path / "x").mkdir(exist_ok=True)
    said = f"{tmp_path}/x has no folder for any of the 4 classes"
    assert refusal(str(tmp_path / "x"), FILES) == said


def test_a_number_of_no_class_is_named(tmp_path):
    trees.shifted(tmp_path / "v2", {"0": 0, "1000": 1})
    said = f"{tmp_path}/v2/1000: classes by number are 0 to 999"
    assert refusal(str(tmp_path / "v2"), FILES) == said


def test_a_broken_file_is_named(tmp_path):
    trees.shifted(tmp_path / "r", {CLASSES[0]: 0})
    (tmp_path / f"r/{CLASSES[0]}/1.png").write_bytes(b"no image")
    said = f"1 files below {tmp_path}/r cannot be read: r/{CLASSES[0]}/1.png; a test set allows 0"
    assert refusal(str(tmp_path / "r"), FILES) == said


def test_a_class_without_images_is_named(tmp_path):
    (tmp_path / "r" / CLASSES[0]).mkdir(parents=True)
    assert refusal(str(tmp_path / "r"), FILES).startswith(
        f"{tmp_path}/r/{CLASSES[0]} holds no image"
    )


def test_what_is_not_there_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert read(str(tmp_path / "gone"), FILES) is None
    assert read((str(tmp_path / "file"), str(tmp_path / "gone")), ARRAYS) is None


def test_letters_composed_or_not_are_one_class(tmp_path):
    trees.shifted(tmp_path / "r", {"cafe\u0301": 0, "dog": 1})
    info = Info(name="folder", classes=["a", "b"], mean=[], std=[], folders=["caf\u00e9", "dog"])
    found = read(str(tmp_path / "r"), info)
    assert found.labels.tolist() == [0] * 3 + [1] * 3
    assert all(Path(found.root, path).is_file() for path in found.paths)


def test_links_that_lead_nowhere_are_named(tmp_path):
    trees.shifted(tmp_path / "r", {CLASSES[0]: 0})
    (tmp_path / f"r/{CLASSES[0]}/9.png").symlink_to("nowhere")
    assert refusal(str(tmp_path / "r"), FILES).endswith(
        f"r/{CLASSES[0]}/9.png (the link leads nowhere); a test set allows 0"
    )


def test_an_archive_that_is_not_unpacked_is_refused(tmp_path):
    (tmp_path / "v2.tar").write_bytes(b"x")
    said = f"{tmp_path}/v2.tar is a file: must be a folder that holds a folder a class"
    assert refusal(str(tmp_path / "v2.tar"), FILES) == said


# --- arrays -------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(6) % 4


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def pair(tmp_path):
    """Writes images and labels, as arrays or as bytes; returns their paths."""

    def write(images, labels):
        paths = str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")
        for path, content in zip(paths, (images, labels)):
            Path(path).write_bytes(content if isinstance(content, bytes) else npy(content))
        return paths

    return write


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_a_pair_of_arrays(pair, dtype):
    found = read(pair(IMAGES, LABELS.astype(dtype)), ARRAYS)
    assert isinstance(found, Split) and found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, LABELS)


NUMBERS = "{1} must hold 6 whole numbers, 0 to 3"
WRONG = {
    "floats": (IMAGES / 255, LABELS, "{0} must be uint8 (N, 8, 8, 3), not float64 (6, 8, 8, 3)"),
    "channels first": (
        IMAGES.transpose(0, 3, 1, 2),
        LABELS,
        "{0} must be uint8 (N, 8, 8, 3), not uint8 (6, 3, 8, 8)",
    ),
    "another size": (
        IMAGES[:, 1:],
        LABELS,
        "{0} must be uint8 (N, 8, 8, 3), not uint8 (6, 7, 8, 3)",
    ),
    "one image": (IMAGES[0], LABELS, "{0} must be uint8 (N, 8, 8, 3), not uint8 (8, 8, 3)"),
    "a label less": (IMAGES, LABELS[1:], NUMBERS),
    "one-hot": (IMAGES, np.eye(6, 4), NUMBERS),
    "labels that are floats": (IMAGES, LABELS / 1, NUMBERS),
    "a class more": (IMAGES, LABELS + 1, NUMBERS),
    "a negative label": (IMAGES, LABELS - 1, NUMBERS),
    "the other way round": (LABELS, IMAGES, "{0} must be uint8 (N, 8, 8, 3), not int64 (6,)"),
}


@pytest.mark.parametrize(("images", "labels", "said"), WRONG.values(), ids=WRONG)
def test_other_arrays_are_refused(pair, images, labels, said):
    paths = pair(images, labels)
    assert refusal(paths, ARRAYS) == said.format(*paths)


BROKEN = [
    b"",
    npy(LABELS)[:20],
    npy(LABELS)[:-1],
    npz(LABELS),
    b"text" * 99,
    npy(LABELS).replace(b"}", b"("),
]


@pytest.mark.parametrize(
    "broken", BROKEN, ids=["empty", "header", "cut off", "npz", "text", "no header"]
)
def test_broken_arrays_are_refused(pair, broken):
    for contents in ((broken, LABELS), (IMAGES, broken)):
        images, labels = pair(*contents)
        said = f"{images}, {labels}: not both arrays, or damaged: "
        assert refusal((images, labels), ARRAYS).startswith(said)


def test_nothing_is_unpickled(pair, evil):
    assert "not both arrays" in refusal(pair(np.array([evil], object), LABELS), ARRAYS)


def test_images_that_do_not_fit_into_memory_are_refused(pair, monkeypatch):
    paths = pair(IMAGES, LABELS)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    assert refusal(paths, ARRAYS).startswith(
        f"the images of {paths[0]} take 0.0 GB of memory, 0.0 are free: "
    )


def test_no_image_at_all_is_refused(pair):
    assert "labels.npy" in refusal(pair(IMAGES[:0], LABELS[:0]), ARRAYS)


# --- the stage ----------------------------------------------------------------------------------


def test_the_stage_says_what_it_found_and_what_not(here, capsys):
    trees.shifted(here / "r", {CLASSES[3]: 3, CLASSES[1]: 1})
    trees.shifted(here / "v2", {numbered(wnid): i for i, wnid in enumerate(CLASSES)})
    Path("weights").write_bytes(b"")
    params = small_imagenet.params(here / "tree", Path("weights"))
    params["shifted"] = {"v2": "v2", "r": str(here / "r"), "a": "nowhere/imagenet-a"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    save_info("data/info.json", FILES)
    save_split("data/test.safetensors", TEST)
    stages.shift.main()
    assert json.loads((SHIFTED / "sets.json").read_text()) == {
        "v2": {"images": 12, "classes": [0, 1, 2, 3]},
        "r": {"images": 6, "classes": [1, 3]},
        "a": {"skipped": "nothing is at nowhere/imagenet-a"},
    }
    said = capsys.readouterr().out
    assert "v2: 12 images of 4 classes" in said and "r: 6 images of 2 classes" in said
    assert "a is skipped: nothing is at nowhere/imagenet-a" in said
    assert said.endswith("data/shifted: 2 test sets, 1 are skipped\n")
    assert load_split(SHIFTED / "r.safetensors").labels.tolist() == [1, 1, 1, 3, 3, 3]

    shutil.rmtree("r")  # and what was there before does not stay
    stages.shift.main()
    assert sorted(path.name for path in SHIFTED.iterdir()) == ["sets.json", "v2.safetensors"]


def test_a_temporary_copy_reads_the_sets_of_the_checkout(here, monkeypatch):
    """And writes the same files as the checkout, from which later stages read the images."""
    trees.shifted(here / "sets/r", {CLASSES[3]: 3, CLASSES[1]: 1})
    Path("weights").write_bytes(b"")
    params = small_imagenet.params(here / "tree", Path("weights"))
    params["shifted"] = {"r": "sets/r"}
    copy = here / ".dvc/tmp/exps/tmp1"
    (copy / "sets").mkdir(parents=True)
    written = []
    for folder in (here, copy):
        monkeypatch.chdir(folder)
        Path("params.yaml").write_text(yaml.safe_dump(params))
        save_info("data/info.json", FILES)
        save_split("data/test.safetensors", TEST)
        stages.shift.main()
        split = load_split(SHIFTED / "r.safetensors")
        assert len(split.paths) == 6
        assert all(Path(split.root, path).is_file() for path in split.paths)
        written.append((SHIFTED / "r.safetensors").read_bytes())
    assert written[0] == written[1]


def test_the_stage_takes_arrays(here, pair):
    images, labels = pair(IMAGES, LABELS)
    params = yaml.safe_load((Path(__file__).parents[2] / "presets/cifar100.yaml").read_text())
    params["shifted"] = {"cifar10_1": [images, labels], "other": [images, "gone.npy"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    save_info("data/info.json", ARRAYS)
    save_split("data/test.safetensors", TEST)
    stages.shift.main()
    assert json.loads((SHIFTED / "sets.json").read_text()) == {
        "cifar10_1": {"images": 6, "classes": [0, 1, 2, 3]},
        "other": {"skipped": f"nothing is at {images}, gone.npy"},
    }
    np.testing.assert_array_equal(load_split(SHIFTED / "cifar10_1.safetensors").images, IMAGES)
