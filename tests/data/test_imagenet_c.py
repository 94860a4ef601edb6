"""ImageNet-C's folders: the files of the test images in their order, or one line."""

import shutil
from pathlib import Path

import pytest
import trees

from richkd.base.errors import InputError
from richkd.data import folder
from richkd.data.imagenet_c import read_imagenet_c

WNIDS = trees.WNIDS[:3]
NAMES, SEVERITIES = ["fog", "gaussian_noise"], [1, 3]
GROUPS = {"fog": "weather", "gaussian_noise": "noise"}


@pytest.fixture(scope="module")
def test_images(tmp_path_factory):
    """Five test images, not in the order of their names."""
    tree = trees.imagenet(tmp_path_factory.mktemp("tree"), 1, 3, WNIDS, oddities=False)
    trees.corrupted(tree.parent / "c", tree, NAMES, SEVERITIES, 32)
    manifest, _ = folder.scan(tree, folder.in_folders(tree / "val", WNIDS), "val")
    return manifest.take([4, 0, 8, 3, 1])


@pytest.fixture(params=["flat", "as in the archives"])
def published(request, test_images, tmp_path):
    root = Path(shutil.copytree(Path(test_images.root).parent / "c", tmp_path / "c"))
    if request.param != "flat":
        for name, group in GROUPS.items():
            (root / group).mkdir()
            (root / name).rename(root / group / name)
    return root


def read(root, test_images, names=NAMES, severities=SEVERITIES):
    return read_imagenet_c(root, names, severities, test_images, WNIDS)


def refusal(found):
    with pytest.raises(InputError) as caught:
        next(found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("severities", [[1, 3], [3, 1], [3]])
def test_files_are_in_the_order_of_the_test_images(published, test_images, severities):
    found = dict(read(str(published), test_images, NAMES[::-1], severities))
    assert list(found) == NAMES[::-1]
    for name, manifest in found.items():
        assert manifest.root == str(published)
        ends = [
            f"{name}/{severity}/{Path(path).relative_to('val')}"
            for severity in severities
            for path in test_images.paths
        ]
        assert all(path.endswith(end) for path, end in zip(manifest.paths, ends, strict=True))
        assert all((published / path).is_file() for path in manifest.paths)
        assert manifest.labels.tolist() == test_images.labels.tolist() * len(severities)
        assert manifest.sizes.tolist() == [[32, 32]] * len(manifest.paths) and manifest.plain.all()


def test_images_of_flat_validation_are_found(published, test_images):
    """Only the names of such files are in ImageNet-C; the folders follow from the classes."""
    flat = test_images._replace(paths=[f"val/{Path(path).name}" for path in test_images.paths])
    found, expected = (dict(read(published, x)) for x in (flat, test_images))
    assert {name: x.paths for name, x in found.items()} == {
        name: x.paths for name, x in expected.items()
    }


def test_the_ending_may_be_another(published, test_images):
    for path in published.rglob("*.JPEG"):
        path.rename(path.with_suffix(".png"))
    assert all(path.endswith(".png") for _, x in read(published, test_images) for path in x.paths)


def test_every_missing_corruption_is_named_before_any_is_read(published, test_images):
    found = read(published, test_images, ["fog", "snow", "frost"])
    assert refusal(found) == f"{published} has no folder snow, frost"


def test_a_missing_severity_is_named(published, test_images):
    (inner,) = published.rglob("fog")
    shutil.rmtree(inner / "3")
    first = f"{WNIDS[1]}/{WNIDS[1]}_1"
    said = f"{inner}/3 lacks 5 of the test images, first {first}"
    assert refusal(read(published, test_images)) == said


def test_a_missing_file_is_named(published, test_images):
    (inner,) = published.rglob("gaussian_noise")
    (inner / f"3/{WNIDS[2]}/{WNIDS[2]}_2.JPEG").unlink()
    found = read(published, test_images)
    assert next(found)[0] == "fog"
    said = f"{inner}/3 lacks 1 of the test images, first {WNIDS[2]}/{WNIDS[2]}_2"
    assert refusal(found) == said


def test_a_broken_file_is_named(published, test_images):
    (inner,) = published.rglob("fog")
    path = inner / f"1/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    named = path.relative_to(published)
    said = f"1 files below {published} cannot be read: {named}; ImageNet-C allows 0"
    assert refusal(read(published, test_images)) == said


def test_images_that_are_not_test_images_are_left_out_and_counted(published, test_images, capsys):
    for path in published.rglob(f"{WNIDS[2]}_1.JPEG"):  # not among the five
        path.write_bytes(b"")
    assert [name for name, _ in read(published, test_images)] == NAMES
    said = f"{published}: 16 images that are not among the test images are left out\n"
    assert capsys.readouterr().out == said
