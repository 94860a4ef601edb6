"""The published corrupted test sets, from the tar or its folder: the right block, or one line."""

import io
import os
import re
import tarfile

import numpy as np
import pytest

from richkd.base.download import CHECKSUM
from richkd.base.errors import InputError
from richkd.data.cifar_c import OFFICIAL, read_cifar_c

LABELS = np.random.default_rng(0).integers(0, 100, 20)
NAMES = ["fog", "snow", "frost"]


def published():
    """Image i of corruption c at severity s has (i, s, c) in its first pixel."""
    arrays = {"labels": np.tile(LABELS, 5).astype(np.uint8)}
    for c, name in enumerate(NAMES):
        arrays[name] = np.zeros((100, 32, 32, 3), np.uint8)
        arrays[name][:, 0, 0] = [(i, s, c) for s in range(1, 6) for i in range(20)]
    return arrays


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(params=["folder", "inner folder", "tar", "flat tar", "tar.gz"])
def write(request, tmp_path):
    """Writes arrays, or bytes, in one of the forms they come in; returns its path."""

    def write(arrays):
        files = {f"{name}.npy": x if isinstance(x, bytes) else npy(x) for name, x in arrays.items()}
        if "folder" in request.param:
            inner = tmp_path / "CIFAR-100-C" if request.param == "inner folder" else tmp_path
            inner.mkdir(exist_ok=True)
            for name, data in files.items():
                (inner / name).write_bytes(data)
            return tmp_path
        path = tmp_path / "CIFAR-100-C.tar"
        with tarfile.open(path, "w:gz" if request.param == "tar.gz" else "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo("CIFAR-100-C/" * (request.param != "flat tar") + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


def refusal(path, names=NAMES, severities=(1,)):
    """What the very first step says."""
    with pytest.raises(InputError) as caught:
        next(read_cifar_c(path, names, severities, LABELS))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("severities", [[1, 2, 3, 4, 5], [5, 1], [3]])
def test_the_blocks_come_in_the_order_asked_for(write, severities):
    path = write(published())
    found = list(read_cifar_c(str(path), ["frost", "fog"], severities, LABELS))
    assert [name for name, _ in found] == ["frost", "fog"]
    for name, images in found:
        assert images.shape == (20 * len(severities), 32, 32, 3) and images.dtype == np.uint8
        expected = [(i, s, NAMES.index(name)) for s in severities for i in range(20)]
        np.testing.assert_array_equal(images[:, 0, 0], expected)
        assert images[:, 1:].sum() == 0


def test_every_missing_file_is_named_before_any_is_read(write):
    arrays = published()
    del arrays["snow"]
    path = write(arrays)
    assert refusal(path, ["fog", "snow", "blur"]) == f"{path} has no snow.npy, blur.npy"


def test_missing_labels_are_named(write):
    arrays = published()
    del arrays["labels"]
    assert "has no " in (text := refusal(write(arrays))) and text.endswith("labels.npy")


@pytest.mark.parametrize("change", ["another", "once", "reversed"])
def test_labels_of_another_test_set_are_refused(write, change):
    arrays = published()
    labels = arrays["labels"]
    if change == "another":
        labels[-1] += 1
    else:
        arrays["labels"] = labels[:20] if change == "once" else labels[::-1]
    path = write(arrays)
    assert refusal(path) == f"{path}: labels.npy must hold the 20 test labels five times over"


IMAGES = published()["fog"]
WRONG = {
    "floats": (IMAGES / 255, "float64 (100, 32, 32, 3)"),
    "an image less": (IMAGES[1:], "uint8 (99, 32, 32, 3)"),
    "one severity": (IMAGES[:20], "uint8 (20, 32, 32, 3)"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), "uint8 (100, 3, 32, 32)"),
}


@pytest.mark.parametrize(("images", "found"), WRONG.values(), ids=WRONG)
def test_another_dtype_or_shape_is_named(write, images, found):
    path = write(published() | {"fog": images})
    assert refusal(path) == f"{path}: fog.npy must be uint8 (100, 32, 32, 3), not {found}"


@pytest.mark.parametrize("name", ["fog", "labels"])
@pytest.mark.parametrize("size", [0, 5, 60, 127, 140])
def test_a_truncated_array_is_named(write, name, size):
    arrays = published()
    path = write(arrays | {name: npy(arrays[name])[:size]})
    assert refusal(path).startswith(f"{path}: {name}.npy is damaged: ")


def test_an_array_without_its_last_byte_is_named(write):
    path = write(published() | {"snow": npy(IMAGES)[:-1]})
    found = read_cifar_c(path, NAMES, [1], LABELS)
    assert next(found)[0] == "fog"
    with pytest.raises(InputError, match=f"{path}: snow.npy is damaged: "):
        next(found)


def test_nothing_is_unpickled(write, tmp_path):
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = write(published() | {"fog": np.array([Evil()], object)})
    assert refusal(path).startswith(f"{path}: fog.npy is damaged: ")
    assert not marker.exists()


def test_a_zip_of_arrays_is_refused(write):
    file = io.BytesIO()
    np.savez(file, x=IMAGES)
    path = write(published() | {"fog": file.getvalue()})
    assert refusal(path).startswith(f"{path}: fog.npy is damaged: ")


def test_a_truncated_tar_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("fog.npy")
        info.size = 5_000
        tar.addfile(info, io.BytesIO(bytes(5_000)))
    os.truncate(path, 3_000)
    assert refusal(path) == f"{path} is damaged, or not a tar archive"


def test_a_path_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "gone"
    assert refusal(path) == f"{path} could not be read: No such file or directory"


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_an_unknown_severity_is_refused(tmp_path, severity):
    text = f"severities must be 1 to 5, not {severity}"
    assert refusal(tmp_path, severities=[1, severity]) == text


def test_what_is_needed_to_download_them():
    assert list(OFFICIAL) == ["cifar100", "cifar10"]
    for file, checksum in OFFICIAL.values():
        assert file.endswith("-C.tar") and re.fullmatch(CHECKSUM, checksum)
