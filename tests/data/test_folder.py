"""Images in folders: what is found, what is left out, and what is refused in one line."""

import io
import json
import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import trees
from PIL import Image, ImageOps
from scipy.io import savemat

from richkd import params
from richkd.base.errors import InputError
from richkd.data import folder, pictures
from richkd.data.dataset import load_split, save_split
from richkd.data.imagesets import decode
from richkd.data.pictures import picture

WNIDS = trees.WNIDS[:4]
TRAIN, VAL = 7, 3
KIT = Path("ILSVRC2012_devkit_t12/data")
TRUTH = KIT / "ILSVRC2012_validation_ground_truth.txt"
ENDINGS = ".jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff"
ALL = {
    "classes": "all",
    "expect_train": None,
    "expect_val": None,
    "unreadable": 0,
    "train_per_class": "all",
    "validation": 0,
    "captioned_images": 0,
    "seed": 0,
}


def imagenet(root, **changes):
    """The section of params for these classes."""
    return params.ImageNet(
        **ALL | {"name": "imagenet", "root": str(root), "classes": tuple(WNIDS)} | changes
    )


def own(root, **changes):
    return params.Folder(**ALL | {"name": "folder", "root": str(root), "names": None} | changes)


def refusal(p):
    with pytest.raises(InputError) as caught:
        folder.prepare_folders(p)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A tree with grey, CMYK, palette, turned and cut off files in the first class; only read."""
    return trees.imagenet(tmp_path_factory.mktemp("odd"), TRAIN, VAL, WNIDS)


@pytest.fixture
def tree(odd, tmp_path):
    """A copy to spoil, in which every file is whole."""
    root = Path(shutil.copytree(odd, tmp_path / "tree"))
    whole = root / f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"
    shutil.copy(whole, whole.with_name(f"{WNIDS[0]}_4.JPEG"))
    return root


# --- what is there ------------------------------------------------------------------------------


def test_a_tree_as_splits(odd, capsys):
    splits, info = folder.prepare_folders(
        imagenet(odd, unreadable=1, validation=6, captioned_images=8)
    )
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "validation": 6,
        "train": 4 * TRAIN - 1 - 6,
        "captioned": 8,
        "test": 4 * VAL,
    }
    every = dict(zip(folder.wnids(), open_clip.IMAGENET_CLASSNAMES))
    assert info.classes == [every[wnid] for wnid in WNIDS] and info.classes[0] == "tench"
    assert info.folders == WNIDS and info.name == "imagenet"
    cut_off = f"train/{WNIDS[0]}/{WNIDS[0]}_4.JPEG"
    assert info.unreadable == [cut_off]
    assert (
        f"1 files below {odd} cannot be read: {cut_off}; they are left out"
        in capsys.readouterr().out
    )
    for split in splits.values():
        assert split.root == str(odd) and cut_off not in split.paths
        assert [Path(path).parent.name for path in split.paths] == [WNIDS[x] for x in split.labels]
        assert split.labels.dtype == np.int64
    assert not set(splits["train"].paths) & set(splits["validation"].paths)
    assert set(splits["captioned"].paths) <= set(splits["train"].paths)


def test_files_are_in_order_and_the_same_each_time(odd):
    first, again = (folder.prepare_folders(imagenet(odd, unreadable=1))[0] for _ in range(2))
    for part, name in (("train", "train"), ("val", "test")):
        every = sorted(str(path.relative_to(odd)) for path in (odd / part).glob("*/*"))
        assert first[name].paths == [path for path in every if not path.endswith("0764_4.JPEG")]
    for name, split in first.items():
        for a, b in zip(split, again[name]):
            assert np.array_equal(a, b)


def test_the_order_in_params_does_not_matter(odd):
    splits, info = folder.prepare_folders(imagenet(odd, unreadable=1, classes=tuple(WNIDS[2:0:-1])))
    assert info.folders == WNIDS[1:3]
    assert [Path(path).parent.name for path in splits["test"].paths] == [WNIDS[1]] * VAL + [
        WNIDS[2]
    ] * VAL


def test_sizes_and_kinds_are_those_of_the_decoded_images(odd):
    train = folder.prepare_folders(imagenet(odd, unreadable=1))[0]["train"]
    kinds = {}
    for path, size, length, plain in zip(train.paths, train.sizes, train.bytes, train.plain):
        with Image.open(odd / path) as image:
            assert ImageOps.exif_transpose(image).size == tuple(size)
            assert plain == (
                image.format == "JPEG" and image.mode in "RGBL" and not image.getexif()
            )
            kinds[Path(path).stem] = (image.format, image.mode, bool(plain))
        assert decode(odd / path).shape == (3, size[1], size[0])
        assert (odd / path).stat().st_size == length
    assert [kinds[f"{WNIDS[0]}_{i}"] for i in range(4)] == [
        ("JPEG", "L", True),
        ("JPEG", "CMYK", False),
        ("PNG", "P", False),
        ("JPEG", "RGB", False),
    ]
    with Image.open(odd / f"train/{WNIDS[0]}/{WNIDS[0]}_3.JPEG") as lying:
        (number,) = (i for i, path in enumerate(train.paths) if path.endswith("0764_3.JPEG"))
        assert lying.size[::-1] == tuple(train.sizes[number]) != lying.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg", exif=exif)
    width, height, size, plain, _ = folder.probe(tmp_path / "x.jpg")
    assert (width, height) == ((20, 30) if orientation > 4 else (30, 20))
    assert size == (tmp_path / "x.jpg").stat().st_size and plain == (orientation == 1)


def test_two_thousand_files_of_all_thousand_classes(tmp_path):
    """100,000 hard links to 200 files of 95 kB, 500 x 375: 10 s on two cores (by hand)."""
    rng = np.random.default_rng(0)
    sources = [tmp_path / f"{i}.jpg" for i in range(10)]
    for source in sources:
        trees.photograph(0, rng).save(source)
    for number, wnid in enumerate(folder.wnids()):
        for part in ("train", "val"):
            (tmp_path / part / wnid).mkdir(parents=True)
            os.link(sources[number % 10], tmp_path / part / wnid / f"{part}_{number}.JPEG")
    began = time.monotonic()
    splits, info = folder.prepare_folders(
        imagenet(tmp_path, classes="all", expect_train=1000, expect_val=1000)
    )
    print(f"2,000 files in {time.monotonic() - began:.1f} s")
    assert tuple(info.classes) == open_clip.IMAGENET_CLASSNAMES and info.folders == folder.wnids()
    for name in ("train", "test"):
        assert splits[name].labels.tolist() == list(range(1000)) and splits[name].plain.all()


# --- what is not as it must be ------------------------------------------------------------------


def test_more_broken_files_than_allowed_are_named(odd):
    cut_off = f"train/{WNIDS[0]}/{WNIDS[0]}_4.JPEG"
    said = f"1 files below {odd} cannot be read: {cut_off}; dataset.unreadable allows 0"
    assert refusal(imagenet(odd)) == said
    # The broken files are named before the number of images is checked.
    assert refusal(imagenet(odd, expect_train=4 * TRAIN)) == said


def test_the_first_of_many_are_named(tree):
    for path in (tree / "val").glob("*/*"):
        path.write_bytes(b"")
    said = refusal(imagenet(tree, unreadable=11))
    assert said.startswith(
        f"12 files below {tree} cannot be read: val/{WNIDS[0]}/{WNIDS[0]}_0.JPEG, "
    )
    assert said.endswith(", ...; dataset.unreadable allows 11") and said.count(".JPEG") == 5


def test_a_class_of_which_nothing_can_be_read_is_named(tree):
    for path in (tree / "val" / WNIDS[2]).iterdir():
        path.write_bytes(b"no image")
    said = f"{tree}/val holds no image of {WNIDS[2]} that can be read"
    assert refusal(imagenet(tree, unreadable=3)) == said


@pytest.mark.parametrize(
    ("key", "there", "part"), [("expect_train", 4 * TRAIN, "train"), ("expect_val", 4 * VAL, "val")]
)
def test_another_number_of_images_is_refused(tree, key, there, part):
    folder.prepare_folders(imagenet(tree, **{key: there}))
    said = f"{tree}/{part} must hold 1,281,167 images that can be read, not {there}"
    assert refusal(imagenet(tree, **{key: 1_281_167})) == said


def without(tree, part):
    shutil.rmtree(tree / part / WNIDS[1])


def emptied(tree, part):
    for path in (tree / part / WNIDS[1]).iterdir():
        path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("spoil", "part", "changes", "said"),
    [
        (without, "train", {}, f"dataset.classes has '{WNIDS[1]}': {{}}/train has no such folder"),
        (without, "val", {}, f"{{}}/val has no folder for the class '{WNIDS[1]}'"),
        (emptied, "train", {}, f"{{}}/train/{WNIDS[1]} holds no image ({ENDINGS})"),
        (emptied, "val", {}, f"{{}}/val/{WNIDS[1]} holds no image ({ENDINGS})"),
        (
            None,
            "",
            {"classes": ("n01440764", "tench")},
            "dataset.classes has 'tench': no class of ImageNet",
        ),
        (
            None,
            "",
            {"classes": ("n01484850",)},
            "dataset.classes has 'n01484850': {}/train has no such folder",
        ),
        (
            None,
            "",
            {"classes": "all"},
            "{}/train must hold the 1,000 classes of ImageNet, n01484850 is missing: "
            "name yours in dataset.classes",
        ),
    ],
)
def test_wrong_classes_are_one_line(tree, spoil, part, changes, said):
    if spoil:
        spoil(tree, part)
    assert refusal(imagenet(tree, **changes)) == said.format(tree)


def test_a_folder_that_is_no_class_of_imagenets_is_named(tmp_path):
    for wnid in [*folder.wnids(), "a_folder"]:
        (tmp_path / "train" / wnid).mkdir(parents=True)
    assert ", a_folder is none of them: " in refusal(imagenet(tmp_path, classes="all"))


@pytest.mark.parametrize("made", [[], ["n01440764"], ["train"]])
def test_another_root_is_refused(tmp_path, made):
    for name in made:
        (tmp_path / name).mkdir()
    said = "must hold train/<class>/ and val/<class>/, images in them"
    assert refusal(imagenet(tmp_path)) == f"dataset.root: {tmp_path} {said}"
    assert refusal(own(tmp_path / "gone")) == f"dataset.root: {tmp_path}/gone {said}"


def test_more_training_images_than_there_are_is_refused(tree):
    assert refusal(imagenet(tree, train_per_class=8)).startswith("dataset.train_per_class is 8: ")


# --- files that are not images -------------------------------------------------------------------


def test_files_with_another_ending_are_left_out_and_said(tree, capsys):
    for name in ("list.db", "urls.txt"):
        (tree / "train" / WNIDS[1] / name).write_bytes(b"x")
    (tree / "train" / WNIDS[1] / "a_folder.jpg").mkdir()
    splits, info = folder.prepare_folders(imagenet(tree))
    assert len(splits["train"].labels) == 4 * TRAIN and not info.unreadable
    said = f"{tree}/train: 2 files that are not images ({ENDINGS}) are left out"
    assert said in capsys.readouterr().out


def test_endings_in_any_case(tmp_path):
    names = ["a.JPG", "b.Jpeg", "c.png", "d.PNG", "e.webp"]
    for place in ("train/x", "train/y", "val/x", "val/y"):
        (tmp_path / place).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (9, 8)).save(tmp_path / place / name)
    splits, _ = folder.prepare_folders(own(tmp_path))
    assert [Path(path).name for path in splits["train"].paths] == names * 2
    assert splits["train"].plain.tolist() == [True, True, False, False, False] * 2


def encoded(kind, **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def deep(mode):
    """A TIFF with 32 bits a pixel."""
    buffer = io.BytesIO()
    Image.new(mode, (50, 40)).save(buffer, "TIFF")
    return buffer.getvalue()


def flipped(content):
    """With one bit wrong in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


EXIF = Image.Exif()
EXIF[0x010E] = "an eXIf chunk comes before the pixels"
READABLE = {
    "bytes behind the end": encoded("JPEG") + b"\0" * 100,
    "several pictures": encoded("MPO", save_all=True, append_images=[Image.new("RGB", (50, 40))]),
    "WebP": encoded("WEBP"),
    "PNG with EXIF": encoded("PNG", exif=EXIF),
    "PNG with all pixels, without its end": encoded("PNG")[:-12],
    "BMP": encoded("BMP"),
    "GIF": encoded("GIF"),
    "TIFF": encoded("TIFF"),
    "GIF of several frames": encoded(
        "GIF", save_all=True, append_images=[Image.new("RGB", (50, 40))]
    ),
}


def png(width, height):
    """A PNG in grey, so large; its pixels are not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    )


def jpeg(width, height):
    """A JPEG, so large; its pixels are not there."""
    content = encoded("JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


ANOTHER = ": must be JPEG, PNG, WEBP, GIF, BMP, TIFF"
DEEP = "its pixels have 32 bits a channel: must be 8 or 16"
LARGE = " pixels: at most 100 megapixels are allowed"
BROKEN = {
    "empty": (b"", ""),
    "one byte": (b"\xff", ""),
    "no image": (b"<html>not found</html>" * 50, ""),
    "JPEG, half": (encoded("JPEG")[:1000], ""),
    "JPEG, half, with bytes behind": (encoded("JPEG")[:1000] + b"\0" * 100, ""),
    "PNG, half": (encoded("PNG")[:2000], ""),
    "PNG, one bit wrong": (flipped(encoded("PNG")), ""),
    "PNG with EXIF, one bit wrong": (flipped(encoded("PNG", exif=EXIF)), ""),
    "WebP, half": (encoded("WEBP")[:500], ""),
    # Formats that cannot be decoded during training are refused.
    "PPM": (encoded("PPM"), f"it is PPM{ANOTHER}"),
    "GIF, half": (encoded("GIF")[:1000], ""),
    "TIFF, half": (encoded("TIFF")[:4000], ""),
    "TIFF of floats": (deep("F"), DEEP),
    "TIFF of 32 bits": (deep("I"), DEEP),
    "AVIF": (encoded("AVIF"), f"it is AVIF{ANOTHER}"),
    "192 megapixels": (png(19_200, 10_000), f"it has 19,200 x 10,000{LARGE}"),
    "a large square": (png(13_300, 13_300), f"it has 13,300 x 13,300{LARGE}"),
    "a large JPEG": (jpeg(65_000, 65_000), f"it has 65,000 x 65,000{LARGE}"),
    "a strip": (
        jpeg(20, 2001),
        "it has 20 x 2,001 pixels: one side must be at most 100 times the other",
    ),
}


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_unusual_files_that_can_be_read(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    plain = content is READABLE["bytes behind the end"]
    assert folder.probe(tmp_path / "x.jpg") == (50, 40, len(content), plain, False)
    assert decode(tmp_path / "x.jpg").shape == (3, 40, 50)


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_files_that_cannot(tmp_path, content, reason):
    """`prepare` says why; whoever decodes such a file later says the same."""
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert folder.probe(path) == reason
    for read in (decode, picture):
        with pytest.raises(InputError) as caught:
            read(path)
        text = str(caught.value)
        assert text.startswith(f"{path} cannot be ") and text.endswith(reason)
        assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_up_to_the_limit_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pictures, "MEGAPIXELS", 0.01)
    for size in ((100, 100), (1000, 10)):
        Image.new("RGB", size).save(tmp_path / "x", kind)
        assert folder.probe(tmp_path / "x")[:2] == size
        assert decode(tmp_path / "x").shape == (3, *size[::-1])
    Image.new("RGB", (101, 100)).save(tmp_path / "x", kind)
    assert folder.probe(tmp_path / "x") == (
        "it has 101 x 100 pixels: at most 0.01 megapixels are allowed"
    )


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "link.jpg").symlink_to("nowhere")
    assert folder.probe(tmp_path / "gone.jpg") == "it is gone"
    assert folder.probe(tmp_path / "link.jpg") == "the link leads nowhere"


def test_a_reason_stands_behind_the_name(tree):
    (tree / "train" / WNIDS[1] / "a.jpg").write_bytes(encoded("PPM"))
    (tree / "train" / WNIDS[1] / "b.png").symlink_to("nowhere")
    said = (
        f"2 files below {tree} cannot be read: train/{WNIDS[1]}/a.jpg (it is PPM{ANOTHER}), "
        f"train/{WNIDS[1]}/b.png (the link leads nowhere)"
    )
    assert refusal(imagenet(tree)) == f"{said}; dataset.unreadable allows 0"


# --- the official validation images -------------------------------------------------------------


@pytest.fixture
def flat(tree):
    trees.flatten_validation(tree)
    return tree


def by_content(split):
    return {
        (Path(split.root) / path).read_bytes(): label
        for path, label in zip(split.paths, split.labels)
    }


def test_flat_validation_is_that_in_folders(odd, flat):
    expected, (splits, info) = (
        folder.prepare_folders(imagenet(odd, unreadable=1)),
        folder.prepare_folders(imagenet(flat)),
    )
    assert by_content(splits["test"]) == by_content(expected[0]["test"])
    assert info.classes == expected[1].classes
    assert splits["test"].paths == [
        f"val/ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 4 * VAL + 1)
    ]
    assert len(set(splits["test"].labels.tolist())) == 4


def test_some_classes_of_flat_validation(odd, flat):
    two = tuple(WNIDS[1:3])
    expected, _ = folder.prepare_folders(imagenet(odd, classes=two))
    splits, _ = folder.prepare_folders(imagenet(flat, classes=two, expect_val=2 * VAL))
    assert by_content(splits["test"]) == by_content(expected["test"])


def mat(**content):
    buffer = io.BytesIO()
    savemat(buffer, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>" + b"x" * 500,
        mat(other=1),
        mat(synsets=[1, 2, 3]),
        mat(synsets="text"),
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(999),
    ],
    ids=["empty", "a page", "no synsets", "numbers", "text", "another version"],
)
def test_a_broken_devkit_is_one_line(flat, content):
    (flat / KIT / "meta.mat").write_bytes(content)
    assert refusal(imagenet(flat)).startswith(
        f"{flat / KIT} is not ImageNet's devkit, or damaged: "
    )


def test_a_devkit_that_ends_anywhere_is_one_line(flat):
    meta = flat / KIT / "meta.mat"
    content = meta.read_bytes()
    for size in range(0, len(content), 7):
        meta.write_bytes(content[:size])
        with pytest.raises(InputError, match="is not ImageNet's devkit, or damaged: "):
            folder._flat_validation(flat, WNIDS)


@pytest.mark.parametrize("text", [b"1\nx\n", b"1\n99\n", b"5\n", b"\xff\xfe"])
def test_a_broken_ground_truth_is_one_line(flat, text):
    (flat / TRUTH).write_bytes(text)  # synset 5 is no class, 99 unknown
    assert refusal(imagenet(flat)).startswith(
        f"{flat / KIT} is not ImageNet's devkit, or damaged: "
    )


def test_an_image_without_ground_truth_is_named(flat):
    lines = (flat / TRUTH).read_text().splitlines(True)
    (flat / TRUTH).write_text("".join(lines[:7]))
    said = f"{flat}/val/ILSVRC2012_val_00000008.JPEG: the devkit knows 7 images"
    assert refusal(imagenet(flat)) == said


@pytest.mark.parametrize("gone", ["val", KIT, TRUTH, "images"])
def test_without_images_or_devkit_both_are_asked_for(flat, gone):
    if gone == "images":
        for path in (flat / "val").iterdir():
            path.unlink()
    elif (flat / gone).is_dir():
        shutil.rmtree(flat / gone)
    else:
        (flat / gone).unlink()
    assert refusal(imagenet(flat)) == (
        f"{flat}/val must hold a folder a class, or ILSVRC2012_val_*.JPEG and beside it the "
        "devkit: <folder>/data/ILSVRC2012_validation_ground_truth.txt and meta.mat"
    )


# --- any other data set -------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path):
    return trees.imagenet(
        tmp_path / "pets", 2, 2, ["tabby_cat", "dog", "red panda"], oddities=False
    )


def test_folders_give_their_own_names(pets):
    splits, info = folder.prepare_folders(own(pets))
    assert info.folders == ["dog", "red panda", "tabby_cat"]
    assert info.classes == ["dog", "red panda", "tabby cat"] and info.name == "folder"
    assert splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_file_gives_names(pets, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(
        json.dumps({"dog": "a dog", "tabby_cat": "Katze", "red panda": "パンダ", "emu": "x"})
    )
    assert folder.prepare_folders(own(pets, names=str(names)))[1].classes == [
        "a dog",
        "パンダ",
        "Katze",
    ]
    some = own(pets, names=str(names), classes=("tabby_cat", "dog"))
    assert folder.prepare_folders(some)[1].classes == ["a dog", "Katze"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"dog": "a", "tabby_cat": "b"}', "has no name for the class 'red panda'"),
        ('["dog", "cat", "panda"]', "must hold one JSON object: a name for each folder"),
        (
            '{"dog": 1, "tabby_cat": "b", "red panda": "c"}',
            "must hold one JSON object: a name for each folder",
        ),
        ('{"dog": ', "is damaged: Expecting value: line 1 column 9 (char 8)"),
        ("", "is damaged: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, "is damaged: maximum recursion depth exceeded while decoding"),
        ('{"dog": ' + "9" * 5000, "is damaged: Exceeds the limit (4300 digits)"),
        ('{"dog": "café"}'.encode("latin1"), "must be UTF-8: byte 12 is not"),
        ('{"dog": " "}', "names the class 'dog' ' ': must be text"),
        ('{"dog": "\\ud800"}', "names the class 'dog' '\\ud800': must be text"),
        (b" " * 10_000_001, "is too large: must be at most 10 MB"),
        ('{"dog": "a", "dog": "b"}', "names the class 'dog' twice: must name it once"),
        (
            '{"caf\u00e9": "a", "cafe\u0301": "b"}',
            "names the class 'caf\u00e9' twice: must name it once",
        ),
    ],
)
def test_wrong_names_are_one_line(pets, tmp_path, content, said):
    names = tmp_path / "names.json"
    names.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal(own(pets, names=str(names)))
    assert text.startswith(f"{names} {said}") and len(text) < 300 + len(str(names))


def test_two_classes_of_one_readable_name_are_refused(pets, tmp_path):
    shutil.copytree(pets / "train/dog", pets / "train/Tabby cat")
    assert refusal(own(pets)) == (
        "the classes 'Tabby cat' and 'tabby_cat' are both called 'tabby cat': give them names that "
        "differ in dataset.names, or make them one folder"
    )
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"dog": "a  dog", "tabby_cat": "A dog", "red panda": "x"}))
    some = own(pets, names=str(names), classes=("dog", "red panda", "tabby_cat"))
    assert (
        f"'dog' and 'tabby_cat' are both called 'A dog': give them names that differ in {names}"
        in (refusal(some))
    )


def test_a_class_without_a_readable_name_is_refused(pets):
    (pets / "train/dog").rename(pets / "train/__")
    assert refusal(own(pets)) == "the class '__' has the name '': must be text"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_names_in_any_unicode(pets, tmp_path, encoding):
    names = tmp_path / "names.json"
    given = {"dog": "Hündin", "tabby_cat": "кошка", "red panda": "パンダ"}
    names.write_text(json.dumps(given, ensure_ascii=False), encoding=encoding)
    _, info = folder.prepare_folders(own(pets, names=str(names)))
    assert info.classes == ["Hündin", "パンダ", "кошка"]


def test_names_that_are_not_there(pets, tmp_path):
    said = f"{tmp_path}/gone.json cannot be read: No such file or directory"
    assert refusal(own(pets, names=f"{tmp_path}/gone.json")) == said


def test_classes_that_are_not_there(pets):
    said = f"dataset.classes has 'emu': {pets}/train has no such folder"
    assert refusal(own(pets, classes=("dog", "emu"))) == said
    (pets / "train/emu").mkdir()
    assert refusal(own(pets)) == f"{pets}/train/emu holds no image ({ENDINGS})"


# --- names with other letters than the Latin ones -----------------------------------------------

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_composed_and_decomposed_letters_are_one_class(pets, tmp_path):
    (pets / "train/dog").rename(pets / f"train/{DECOMPOSED}")
    (pets / "val/dog").rename(pets / f"val/{COMPOSED}")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({DECOMPOSED: "a bar", "red panda": "x", "tabby_cat": "y"}))
    splits, info = folder.prepare_folders(own(pets, names=str(names)))
    assert info.folders == [COMPOSED, "red panda", "tabby_cat"] and info.classes[0] == "a bar"
    for name, written in (("train", DECOMPOSED), ("test", COMPOSED)):
        paths = [path for path, label in zip(splits[name].paths, splits[name].labels) if not label]
        assert len(paths) == 2 and all(f"/{written}/" in path for path in paths)
        assert (pets / paths[0]).is_file()
    for spelling in (COMPOSED, DECOMPOSED):
        chosen = own(pets, classes=("tabby_cat", spelling))
        assert folder.prepare_folders(chosen)[1].folders == [COMPOSED, "tabby_cat"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_one_class_in_two_folders_is_refused(pets, part):
    for name in (COMPOSED, DECOMPOSED):
        shutil.copytree(pets / "train/dog", pets / part / name)
        shutil.copytree(pets / "train/dog", pets / "train" / COMPOSED, dirs_exist_ok=True)
    assert refusal(own(pets)) == (
        f"{pets}/{part} has two folders for the class '{COMPOSED}', with letters composed and "
        "decomposed: must be one folder"
    )


def test_a_class_whose_name_is_no_utf8_is_refused(pets):
    os.rename(os.fsencode(pets / "train/dog"), os.fsencode(pets) + b"/train/caf\xe9")
    said = f"{pets}/train/caf\\udce9: a class's name must be UTF-8"
    assert refusal(own(pets)) == said


def test_files_whose_names_are_no_utf8_are_read(pets, tmp_path, capsys):
    path = os.fsdecode(os.fsencode(pets) + b"/train/dog/caf\xe9.jpg")
    shutil.copy(next((pets / "train/dog").iterdir()), path)
    splits, _ = folder.prepare_folders(own(pets))
    save_split(tmp_path / "train.safetensors", splits["train"])
    train = load_split(tmp_path / "train.safetensors")
    assert [f"{train.root}/{x}" for x in train.paths].count(path) == 1
    assert decode(path).shape[0] == 3 and picture(path).mode == "RGB"
    Path(path).write_bytes(b"no image")
    _, info = folder.prepare_folders(own(pets, unreadable=1))
    assert info.unreadable == ["train/dog/caf\\udce9.jpg"]
    assert "cannot be read: train/dog/caf\\udce9.jpg; they" in capsys.readouterr().out
    for read in (decode, picture):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "train/dog/caf\\udce9.jpg cannot be decoded: " in str(caught.value)


# --- what is left out ---------------------------------------------------------------------------


def left_out(p, capsys):
    capsys.readouterr()
    folder.prepare_folders(p)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" are left out") for line in lines)
    return [line.removesuffix(" are left out") for line in lines]


def test_everything_that_is_left_out_is_counted(pets, capsys):
    assert left_out(own(pets), capsys) == []
    image = next((pets / "train/dog").iterdir())
    below = pets / "train/dog/more/and more"
    below.mkdir(parents=True)
    for path in (below / "a.jpg", below.parent / "b.png", below / "notes.txt", pets / "val/c.jpg"):
        shutil.copy(image, path)
    (pets / "train/dog/gone.txt").symlink_to("nowhere")
    os.mkfifo(pets / "train/dog/pipe.jpg")
    shutil.copytree(pets / "train/red panda", pets / "val/emu")
    assert left_out(own(pets), capsys) == [
        f"{pets}/train: 2 files that are not images ({ENDINGS})",
        f"{pets}/train: 2 images in folders below a class's folder",
        f"{pets}/val: 1 classes that are not in the data set",
        f"{pets}/val: 1 images that lie in no class's folder",
    ]
    assert left_out(own(pets, classes=("red panda", "tabby_cat")), capsys) == [
        f"{pets}/train: 1 classes that are not in the data set",
        f"{pets}/val: 2 classes that are not in the data set",
        f"{pets}/val: 1 images that lie in no class's folder",
    ]


def test_a_class_with_images_only_below_its_folder_says_so(pets):
    for path in list((pets / "train/dog").iterdir()):
        (pets / "train/dog/images").mkdir(exist_ok=True)
        path.rename(pets / "train/dog/images" / path.name)
    assert refusal(own(pets)) == (
        f"{pets}/train/dog holds no image ({ENDINGS}), but 2 in folders below it"
    )


def test_flat_validation_counts_too(flat, capsys):
    (flat / "val/notes.txt").write_text("x")
    assert left_out(imagenet(flat, classes=tuple(WNIDS[:2])), capsys) == [
        f"{flat}/train: 2 classes that are not in the data set",
        f"{flat}/val: 1 files that are not validation images",
        f"{flat}/val: 6 images of classes that are not in the data set",
    ]


def test_hidden_files_and_folders_are_passed_over(pets, flat, capsys):
    expected = folder.prepare_folders(own(pets))
    image = next((pets / "train/dog").iterdir())
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        for place in ("train", "val", "train/dog", "train/dog/more"):
            shutil.copytree(pets / "val/dog", pets / place / name)
    for name in ("._x.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        for place in ("train", "val", "train/dog", "val/dog", "train/dog/more"):
            shutil.copy(image, pets / place / name)
    assert left_out(own(pets), capsys) == []
    found = folder.prepare_folders(own(pets))
    assert found[1] == expected[1] and found[0]["train"].paths == expected[0]["train"].paths
    (flat / "val/.DS_Store").touch()
    assert left_out(imagenet(flat), capsys) == []


def test_one_class_is_refused(pets, tree):
    said = "the data set has the class {!r} alone: {}/train and dataset.classes must have two"
    assert refusal(own(pets, classes=("dog",))) == said.format("dog", pets)
    assert refusal(imagenet(tree, classes=(WNIDS[0],))) == said.format(WNIDS[0], tree)
    for name in ("dog", "red panda"):
        shutil.rmtree(pets / "train" / name)
    assert refusal(own(pets)) == said.format("tabby_cat", pets)


def test_a_temporary_copy_finds_the_images_of_the_checkout(pets, monkeypatch):
    """The copy makes the same records; without images the error names both places."""
    monkeypatch.chdir(pets.parent)
    expected, _ = folder.prepare_folders(own("pets"))
    copy = pets.parent / ".dvc/tmp/exps/tmp1"
    (copy / "pets").mkdir(parents=True)  # as where git knows a file of the folder
    monkeypatch.chdir(copy)
    found, _ = folder.prepare_folders(own("pets"))
    assert found["train"].root == expected["train"].root == "pets"
    assert found["train"].paths == expected["train"].paths
    save_split("train.safetensors", found["train"])
    train = load_split("train.safetensors")
    assert decode(Path(train.root, train.paths[0])).shape[0] == 3
    said = (
        f"dataset.root: {copy}/gone or {pets.parent}/gone must hold train/<class>/ and val/<class>/"
    )
    assert refusal(own("gone")).startswith(said)
    said = f"{copy}/x.json or {pets.parent}/x.json cannot be read: No such file or directory"
    assert refusal(own("pets", names="x.json")) == said


# --- validation images --------------------------------------------------------------------------


def test_validation_is_a_count_or_a_share(pets, capsys):
    for name in ("dog", "red panda", "tabby_cat"):
        for i in range(6 if name == "dog" else 2):
            shutil.copy(next((pets / "train" / name).iterdir()), pets / "train" / name / f"{i}.png")
    for wanted, expected in ((6, [2, 2, 2]), (0.25, [2, 1, 1])):  # of 8, 4 and 4 images
        splits, _ = folder.prepare_folders(own(pets, validation=wanted, captioned_images="all"))
        assert np.bincount(splits["validation"].labels).tolist() == expected
        assert splits["captioned"].paths == splits["train"].paths


@pytest.mark.parametrize("wanted", [2, 0.5])
def test_a_class_without_an_image_for_validation_is_named(pets, wanted):
    next((pets / "train/dog").iterdir()).unlink()
    assert refusal(own(pets, validation=wanted)) == (
        f"dataset.validation is {wanted}: leaves no validation image of the class 'dog', which has "
        "1 for training; must be 0 or at least 3, one for each class"
    )
    assert "leaves no captioned image of the class" in refusal(own(pets, captioned_images=2))
    said = "dataset.validation is 3: must leave an image a class, so at most 2"
    assert refusal(own(pets, validation=3)) == said


# --- what an image looks like -------------------------------------------------------------------

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="{}"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def turned(path, orientation, by):
    """A JPEG of noise that EXIF or XMP turns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    how = {"exif": exif} if by == "EXIF" else {"xmp": XMP.format(orientation).encode()}
    Image.fromarray(noise).save(path, "JPEG", **how)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_and_xmp_turn_an_image_alike(tmp_path, orientation):
    """In `decode`, for networks, and in `picture`, for corruptions and the report."""
    shown = []
    for by in ("EXIF", "XMP"):
        path = tmp_path / f"{by}.jpg"
        turned(path, orientation, by)
        width, height, _, plain, _ = folder.probe(path)
        shown += [decode(path).permute(1, 2, 0).numpy(), np.asarray(picture(path))]
        assert shown[-1].shape == (height, width, 3) and plain == (orientation == 1)
    assert all(np.array_equal(x, shown[0]) for x in shown)


def test_transparency_is_laid_on_white_and_said(pets, capsys):
    levels = np.full((8, 8, 4), 100, np.uint8)
    levels[:4, :, 3], levels[4:, :, 3] = 255, 0
    Image.fromarray(levels).save(pets / "train/dog/half.png")
    levels[..., 3] = 255
    Image.fromarray(levels).save(pets / "train/dog/opaque.png")
    folder.prepare_folders(own(pets))
    said = "train: 1 images are transparent in places, which are made white"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    for name, lower in (("half", 255), ("opaque", 100)):
        path = pets / f"train/dog/{name}.png"
        for shown in (decode(path).permute(1, 2, 0).numpy(), np.asarray(picture(path))):
            assert (shown[:4] == 100).all() and (shown[4:] == lower).all()


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (9, 8), color) for color in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        frames[0].save(tmp_path / kind, kind, save_all=True, append_images=frames[1:])
        red = np.asarray(picture(tmp_path / kind))[0, 0]
        assert red[0] > 250 and red[2] < 5
        assert np.array_equal(decode(tmp_path / kind)[:, 0, 0], red)


def test_damaged_pngs_are_one_line(tmp_path):
    """On more than half of these files torchvision 0.29 would end the process."""
    rng, path = np.random.default_rng(0), tmp_path / "x.png"
    for _ in range(100):
        content = bytearray(encoded("PNG"))
        for place in rng.integers(0, len(content), 5):
            content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content[: rng.integers(1, len(content))])
        with pytest.raises(InputError, match="cannot be decoded"):
            decode(path)
        assert isinstance(folder.probe(path), str)
