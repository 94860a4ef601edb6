"""Further test sets, which come from elsewhere than the training images.

Folders by class: ImageNet-V2 (Recht et al., ICML 2019), -R (Hendrycks et al., ICCV 2021), -A
(Hendrycks et al., CVPR 2021), -Sketch (Wang et al., NeurIPS 2019). A folder has the name that the
class has in the training images or, in ImageNet-V2, the number of the class. A set need not have
every class.
Arrays: CIFAR-10.1 (Recht et al., 2018) and sets like it, images and labels as two `.npy` files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from richkd.base import memory
from richkd.base.checkout import locate
from richkd.base.errors import InputError
from richkd.data.dataset import Info, Manifest, Split
from richkd.data.folder import in_folders, report_unreadable, scan, subfolders, wnids


def read_shifted(
    path: str | Sequence[str], info: Info, test: Split | Manifest
) -> Split | Manifest | None:
    """The set at `path`, with the labels of the training images; None if nothing is at `path`.

    path: a folder, or the files of images and of labels. Raises InputError if the set has none of
    the classes or an unknown one, if a file cannot be read, and for arrays whose size is not that
    of the `test` images.
    """
    if isinstance(path, str):
        folder = locate(path)
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise InputError(f"{folder} is a file: must be a folder that holds a folder a class")
        # As it is written in the params: a temporary copy makes the same records.
        return _read_folders(folder, info)._replace(root=str(Path(path).parent))
    images, labels = map(locate, path)
    if not images.is_file() or not labels.is_file():
        return None
    assert isinstance(test, Split)  # the params allow arrays only beside arrays
    return _read_arrays(images, labels, info, test.images.shape[1:])


def _read_arrays(images: Path, labels: Path, info: Info, shape: tuple[int, ...]) -> Split:
    try:
        pixels, truth = (np.lib.format.open_memmap(x, mode="r") for x in (images, labels))
    except Exception as error:  # numpy's error depends on where the file ends
        raise InputError(f"{images}, {labels}: not both arrays, or damaged: {error}") from None
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
        needed = ", ".join(map(str, shape))
        raise InputError(f"{images} must be uint8 (N, {needed}), not {pixels.dtype} {pixels.shape}")
    memory.check(f"the images of {images}", 2 * pixels.nbytes, memory.available(), "take fewer")
    whole = truth.shape == (len(pixels),) and np.issubdtype(truth.dtype, np.integer)
    if not whole or not len(truth) or truth.min() < 0 or truth.max() >= len(info.classes):
        raise InputError(
            f"{labels} must hold {len(pixels)} whole numbers, 0 to {len(info.classes) - 1}"
        )
    return Split(pixels, truth.astype(np.int64))


def _read_folders(path: Path, info: Info) -> Manifest:
    label_of = _labels(path, list(subfolders(path)), info)
    if not label_of:
        raise InputError(f"{path} has no folder for any of the {len(info.folders)} classes")
    kept = list(label_of)
    # `path` is a part of the files' paths: they are relative to the folder above it.
    files = [(file, label_of[kept[position]]) for file, position in in_folders(path, kept)]
    manifest, unreadable = scan(path.parent, files, path.name)
    if unreadable:
        report_unreadable(unreadable, 0, "a test set", path)
    return manifest


def _labels(path: Path, names: Sequence[str], info: Info) -> dict[str, int]:
    """The labels of those folders of `names` whose class is in the data set."""
    label_of = {folder: label for label, folder in enumerate(info.folders)}
    if info.name == "imagenet" and names and all(name.isdecimal() for name in names):
        every = wnids()
        if wrong := [name for name in names if int(name) >= len(every)]:
            raise InputError(f"{path}/{wrong[0]}: classes by number are 0 to {len(every) - 1}")
        return {name: label_of[x] for name in names if (x := every[int(name)]) in label_of}
    return {name: label_of[name] for name in names if name in label_of}
