"""Further test sets, from somewhere else than the training images: where and what they are.

Folders by class: ImageNet-V2 (Recht et al., ICML 2019), -R (Hendrycks et al., ICCV 2021), -A
(Hendrycks et al., CVPR 2021), -Sketch (Wang et al., NeurIPS 2019). A folder is named as in the
training images, or, as in ImageNet-V2, by the number of the class. A set may hold some classes alone.
Arrays: CIFAR-10.1 (Recht et al., 2018) and others like it, images and labels as two `.npy`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from richkd.base.errors import InputError
from richkd.data.dataset import Info, Manifest, Split
from richkd.data.folder import in_folders, say_unreadable, scan, subfolders, wnids


def read(path: str | Sequence[str], info: Info, test: Split | Manifest) -> Split | Manifest | None:
    """The set, labelled as the training images; None where it is not there.

    InputError where it is no such set, knows other classes, holds what cannot be read, or arrays of
    another size than the `test` images.
    """
    if isinstance(path, str):
        return _folders(Path(path), info) if Path(path).is_dir() else None
    if not all(Path(x).is_file() for x in path):
        return None
    return _arrays(*path, info, test.images.shape[1:])


def _arrays(images: str, labels: str, info: Info, shape: tuple[int, ...]) -> Split:
    try:
        split = Split(*(np.lib.format.open_memmap(x, mode="r") for x in (images, labels)))
    except Exception as error:  # what numpy raises depends on where the file ends
        raise InputError(f"{images}, {labels}: not both arrays, or not whole: {error}") from None
    pixels, truth = split
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
        needed = ", ".join(map(str, shape))
        raise InputError(f"{images} must be uint8 (N, {needed}), not {pixels.dtype} {pixels.shape}")
    whole = truth.shape == (len(pixels),) and np.issubdtype(truth.dtype, np.integer)
    if not whole or not len(truth) or truth.min() < 0 or truth.max() >= len(info.classes):
        raise InputError(
            f"{labels} must hold {len(pixels)} whole numbers, 0 to {len(info.classes) - 1}"
        )
    return Split(pixels, truth.astype(np.int64))


def _folders(path: Path, info: Info) -> Manifest:
    there = subfolders(path)
    number_of = {folder: label for label, folder in enumerate(info.folders)}
    if info.name == "imagenet" and there and all(name.isdecimal() for name in there):
        every = wnids()
        if wrong := [name for name in there if int(name) >= len(every)]:
            raise InputError(f"{path}/{wrong[0]}: classes by number are 0 to {len(every) - 1}")
        label_of = {name: number_of.get(every[int(name)]) for name in there}
    else:
        label_of = {name: number_of.get(name) for name in there}
    kept = [name for name in there if label_of[name] is not None]
    if not kept:
        raise InputError(f"{path} has no folder for any of the {len(info.folders)} classes")
    if len(kept) < len(there):
        print(f"{path}: {len(there) - len(kept)} classes that are not in the data set are left out")
    # A path starts with the name of the folder that it lies in.
    files = [(file, label_of[kept[label]]) for file, label in in_folders(path, kept)]
    manifest, unreadable = scan(path.parent, files, path.name)
    if unreadable:
        say_unreadable(unreadable, 0, "a test set", path)
    return manifest
