"""CIFAR's archives: read as published, checked in full, and never a way to run code."""

import os
import pickle
import warnings

import numpy as np
import pytest
from archives import dumps, write

from richkd.base.errors import InputError
from richkd.data.cifar import ARCHIVES, Archive, read_cifar

TINY = Archive(
    file="tiny.tar.gz",
    md5="",
    train=("tiny/one", "tiny/two"),
    test=("tiny/test",),
    meta="tiny/meta",
    labels="labels",
    names="label_names",
    classes=3,
    train_per_class=4,
    test_per_class=2,
    coarse=("coarse", "coarse_names", 2),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(ARCHIVES, "tiny", TINY)


def tiny_contents():
    """Image i of each part has i in its first pixel's blue."""

    def batch(labels):
        data = np.zeros((len(labels), 3072), np.uint8)
        data[:, 2048] = range(len(labels))
        coarse = [int(label == 1) for label in labels]
        rest = {"batch_label": "x", "filenames": []}
        return {"data": data, "labels": labels, "coarse": coarse, **rest}

    return {
        "tiny/one": batch([0, 1, 2, 0, 1]),
        "tiny/two": batch([2, 0, 1, 2, 0, 1, 2]),
        "tiny/test": batch([2, 2, 1, 1, 0, 0]),
        "tiny/meta": {
            "label_names": ["maple_tree", "sea", "lawn_mower"],
            "coarse_names": ["trees", "large_scenes"],
        },
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_batch_is_read_in_order(tmp_path, protocol):
    path = write(tmp_path / "x.tar.gz", tiny_contents(), protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test, classes, superclasses = read_cifar(path, "tiny")
    assert classes == ["maple tree", "sea", "lawn mower"]
    assert superclasses == {"maple tree": "trees", "sea": "large scenes", "lawn mower": "trees"}
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert test.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert train.images[:, 0, 0, 2].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]
    assert train.images.sum() == 10 + 21  # all other values are 0
    for split in (train, test):
        assert split.images.shape == (len(split.labels), 32, 32, 3)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        assert split.images.flags.c_contiguous and split.images.flags.writeable


def test_pixels_are_planes_of_red_green_and_blue_row_by_row(tmp_path):
    contents = tiny_contents()
    plane = np.arange(1024).reshape(32, 32)
    rows, columns = plane // 32 * 8, plane % 32  # up to 248: Python 2 wrote them as text
    contents["tiny/test"]["data"][0] = np.stack([rows, columns, plane % 7]).ravel()
    _, test, *_ = read_cifar(write(tmp_path / "x.tar.gz", contents), "tiny")
    np.testing.assert_array_equal(test.images[0], np.stack([rows, columns, plane % 7], axis=-1))


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("cifar10", 10)])
def test_an_archive_of_official_size_and_layout_is_read(official, name, classes):
    train, test, names, _ = read_cifar(official[name], name)
    for split, count in ((train, 50_000), (test, 10_000)):
        assert split.images.shape == (count, 32, 32, 3)
        assert (np.bincount(split.labels) == count // classes).all()
        np.testing.assert_array_equal(split.images[:, 5, 7, 2], split.labels)
    assert names == [f"class {i}" for i in range(classes)]


def test_the_published_images_are_read(shared):
    train, test, classes, superclasses = read_cifar(
        shared / "data/cifar-100-python.tar.gz", "cifar100"
    )
    means = train.images.reshape(-1, 3).mean(0) / 255
    np.testing.assert_allclose(means, [0.5071, 0.4865, 0.4409], atol=5e-5)
    assert (np.bincount(train.labels) == 500).all() and (np.bincount(test.labels) == 100).all()
    assert len(set(classes)) == 100 and classes[:3] == ["apple", "aquarium fish", "baby"]
    assert "maple tree" in classes and "sweet pepper" in classes
    assert len(superclasses) == 100 and len(set(superclasses.values())) == 20
    assert superclasses["maple tree"] == "trees"
    assert superclasses["aquarium fish"] == "fish"
    assert [classes[i] for i in train.labels[:3]] == ["cattle", "dinosaur", "apple"]
    assert test.labels[:5].tolist() == [49, 33, 72, 51, 71]


def refusal(path, name="tiny"):
    with pytest.raises(InputError) as caught:
        read_cifar(path, name)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("member", ["tiny/meta", "tiny/two"])
def test_a_pickle_that_runs_code_is_refused_and_does_not(tmp_path, member, evil):
    contents = tiny_contents() | {member: pickle.dumps({"data": evil})}
    path = write(tmp_path / "x.tar.gz", contents)
    assert refusal(path) == (
        f"{member} could not be unpickled: it asks for {os.name}.system, which is refused"
    )


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "numpy.ndarray.tofile",
        "codecs.encode",
        "functools.partial",
        "_codecs.lookup",
    ],
)
def test_only_what_arrays_need_is_looked_up(tmp_path, name):
    module, _, name = name.rpartition(".")
    path = write(
        tmp_path / "x.tar.gz",
        tiny_contents() | {"tiny/meta": f"c{module}\n{name}\n.".encode()},
    )
    assert f"it asks for {module}.{name}, which is refused" in refusal(path)


def test_a_way_round_by_dots_in_the_name_is_refused(tmp_path):
    # From protocol 4 on a name is looked up attribute by attribute.
    payload = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    path = write(tmp_path / "x.tar.gz", tiny_contents() | {"tiny/meta": payload})
    assert "it asks for numpy.ndarray.tofile, which is refused" in refusal(path)


@pytest.mark.parametrize("share", [0, 0.2, 0.9])
def test_a_pickle_that_ends_early_is_refused(tmp_path, share):
    contents = tiny_contents()
    data = dumps(contents["tiny/two"], 2)
    contents["tiny/two"] = data[: int(share * len(data))]
    text = refusal(write(tmp_path / "x.tar.gz", contents))
    assert text.startswith("tiny/two could not be unpickled: ")


def changed(member, **changes):
    """The tiny archive with these keys of one member set, or dropped where None."""
    contents = tiny_contents()
    merged = contents[member] | changes
    contents[member] = {key: value for key, value in merged.items() if value is not None}
    return contents


NO_DATA = "tiny/one has no data, only batch_label, coarse, filenames, labels"
NO_LABELS = "tiny/one has no labels, only batch_label, coarse, data, filenames"
SHAPE = "tiny/one: data must be uint8 (N, 3072), not "
LENGTH = "tiny/one: labels must be 5 numbers, one an image"
RANGE = "tiny/one: labels must be 0 to 2, not "
TEXT = "tiny/meta: label_names must be text"
NAMES = "tiny/meta must hold label_names, a list of 3"
KEYS = "batch_label, data, filenames, labels"
DATA = np.zeros((5, 3072))
WRONG = {
    "no data": ("one", {"data": None}, NO_DATA),
    "no labels": ("one", {"labels": None}, NO_LABELS),
    "floats": ("one", {"data": DATA}, SHAPE + "float64 (5, 3072)"),
    "flat": ("one", {"data": DATA[0].astype(np.uint8)}, SHAPE + "uint8 (3072,)"),
    "too wide": ("one", {"data": np.zeros((5, 3073), np.uint8)}, SHAPE + "uint8 (5, 3073)"),
    "a list": ("one", {"data": [1, 2]}, SHAPE + "list"),
    "a label less": ("one", {"labels": [0, 1, 2, 0]}, LENGTH),
    "labels in words": ("one", {"labels": "01201"}, LENGTH),
    "labels without an axis": ("one", {"labels": np.array(3)}, LENGTH),
    "one label": ("one", {"labels": 3}, LENGTH),
    "a column of labels": ("one", {"labels": np.zeros((5, 1), int)}, LENGTH),
    "a label of 5,000 digits": ("one", {"labels": [0, 1, 10**5000, 0, 1]}, RANGE + "int"),
    "a label that is a list": ("one", {"labels": [0, 1, [2], 0, 1]}, RANGE + "list"),
    "a label too large": ("one", {"labels": [0, 1, 3, 0, 1]}, RANGE + "3"),
    "a label below 0": ("one", {"labels": [0, 1, -1, 0, 1]}, RANGE + "-1"),
    "a label with a fraction": ("one", {"labels": [0, 1, 2.5, 0, 1]}, RANGE + "2.5"),
    "no names": ("meta", {"label_names": None}, NAMES),
    "a name less": ("meta", {"label_names": ["a", "b"]}, NAMES),
    "names of another kind": ("meta", {"label_names": "abc"}, NAMES),
    "a name that is none": ("meta", {"label_names": ["a", 1, "c"]}, TEXT),
    "no superclasses": ("one", {"coarse": None}, "tiny/one has no coarse, only " + KEYS),
    "no names of superclasses": (
        "meta",
        {"coarse_names": ["trees"]},
        "tiny/meta must hold coarse_names, a list of 2",
    ),
    "a superclass too large": (
        "one",
        {"coarse": [0, 1, 2, 0, 1]},
        "tiny/one: coarse must be 0 to 1, not 2",
    ),
    "a class of two superclasses": (
        "one",
        {"coarse": [0, 1, 1, 0, 1]},
        "coarse must give each class one superclass",
    ),
    "an image less": (
        "one",
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 0], "coarse": [0, 1, 0, 0]},
        "tiny/one, tiny/two must hold 12 images, not 11",
    ),
    "a class with more": (
        "test",
        {"labels": [2, 2, 1, 1, 1, 0]},
        "tiny/test must hold 2 images a class, not 1 of maple tree",
    ),
}


@pytest.mark.parametrize(("member", "changes", "text"), WRONG.values(), ids=WRONG)
def test_what_is_not_as_published_is_named(tmp_path, member, changes, text):
    assert refusal(write(tmp_path / "x.tar.gz", changed(f"tiny/{member}", **changes), 4)) == text


def test_numpy_labels_are_fine(tmp_path):
    contents = changed("tiny/one", labels=np.array([0, 1, 2, 0, 1], np.int32))
    train, *_ = read_cifar(write(tmp_path / "x.tar.gz", contents), "tiny")
    assert train.labels.dtype == np.int64 and train.labels[:5].tolist() == [0, 1, 2, 0, 1]


def test_a_member_that_is_missing_or_no_dict_is_named(tmp_path):
    contents = tiny_contents() | {"tiny/two": [1]}
    assert refusal(write(tmp_path / "x.tar.gz", contents)) == "tiny/two must hold a dict, not list"
    del contents["tiny/two"]
    assert refusal(write(tmp_path / "x.tar.gz", contents)) == "tiny/two is missing"


def test_the_archive_of_another_data_set_is_refused(tmp_path):
    path = write(tmp_path / "x.tar.gz", tiny_contents())
    assert refusal(path, "cifar100") == "cifar-100-python/meta is missing"


def test_a_truncated_archive_is_refused(tmp_path):
    path = write(tmp_path / "x.tar.gz", tiny_contents())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="x.tar.gz is damaged, or not a tar archive"):
        read_cifar(path, "tiny")


# --- pickles made to be endless -----------------------------------------------------------------

# A pickle of 40 containers, each of which holds the one before twice; then what is done with it.
TUPLES = b"\x80\x02)q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))
LISTS = b"\x80\x02]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(40))
NAMES_KEY = b"X\x0b\x00\x00\x00label_names"
NESTED = "an array is described by nested containers"
ENDLESS = {
    "a key of tuples": (TUPLES[:2] + b"}" + TUPLES[2:] + b"K\x01s.", "a dict's key is not text"),
    "keys of tuples": (TUPLES[:2] + b"}(" + TUPLES[2:] + b"K\x01u.", "a dict's key is not text"),
    "a dict of tuples": (TUPLES[:2] + b"(" + TUPLES[2:] + b"K\x01d.", "a dict's key is not text"),
    "a key of a number": (b"\x80\x02}K\x01K\x01s.", "a dict's key is not text"),
    "a set": (b"\x80\x04\x8f(" + TUPLES[2:] + b"\x90.", "opcode 143 is refused"),
    "a frozen set": (b"\x80\x04(" + TUPLES[2:] + b"\x91.", "opcode 145 is refused"),
    "a dtype of tuples": (b"\x80\x02cnumpy\ndtype\n" + TUPLES[2:] + b"\x85R.", NESTED),
    "a dtype of lists": (b"\x80\x02cnumpy\ndtype\n" + LISTS[2:] + b"\x85R.", NESTED),
    "arguments in a list": (b"\x80\x02cnumpy\ndtype\n" + LISTS[2:] + b"R.", NESTED),
    "a state of lists": (b"\x80\x02cnumpy\ndtype\nU\x02u1\x85R" + LISTS[2:] + b"b.", NESTED),
    "a state of a function": (b"\x80\x02c_codecs\nencode\n}b.", "it sets the state of something"),
    "a slow encoding": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R.",
        "it encodes text in another way",
    ),
    "another way to call": (b"\x80\x02cnumpy\ndtype\n)\x81.", "opcode 129 is refused"),
    "many parts": (b"\x80\x02" + b"]0" * 20_000 + b".", "it has more than 10,000 parts"),
    "many parts in a frame": (
        b"\x80\x04\x95" + (40_001).to_bytes(8, "little") + b"]0" * 20_000 + b".",
        "it has more than 10,000 parts",
    ),
}


@pytest.mark.parametrize(("content", "said"), ENDLESS.values(), ids=ENDLESS)
def test_a_pickle_without_end_is_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.setattr("richkd.data.cifar.OPCODES", 10_000)
    monkeypatch.setattr("richkd.data.cifar._Pickle.left", 10_000)
    path = write(tmp_path / "x.tar.gz", tiny_contents() | {"tiny/meta": content})
    assert refusal(path).startswith(f"tiny/meta could not be unpickled: {said}")


@pytest.mark.parametrize("nested", [TUPLES, LISTS], ids=["tuples", "lists"])
def test_a_class_name_of_nested_containers_is_refused(tmp_path, nested):
    content = b"\x80\x02}" + NAMES_KEY + b"](" + nested[2:] + b"U\x01aU\x01bes."
    path = write(tmp_path / "x.tar.gz", tiny_contents() | {"tiny/meta": content})
    assert refusal(path) == TEXT


def test_many_keys_make_no_long_line(tmp_path):
    contents = tiny_contents() | {"tiny/one": {f"{'k' * 500}{i}": i for i in range(500)}}
    text = refusal(write(tmp_path / "x.tar.gz", contents))
    assert text.startswith("tiny/one has no data, only kkk") and len(text) < 300
