"""Images in folders, one folder a class: ImageNet and any other set. The files stay where they are.

Every file is opened once, to get its size and to see whether it is whole. A JPEG is whole if its
last two bytes are the end mark; other files are decoded. A JPEG that is damaged in the middle is
found only when it is decoded later.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from richkd.base.errors import InputError
from richkd.base.records import read_json
from richkd.data.dataset import Info, Manifest
from richkd.data.splits import divide
from richkd.params import Folder, ImageNet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as everybody uses them
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")  # of the files' content, whatever their names say
END = b"\xff\xd9"  # the end mark of a JPEG
ORIENTATION, ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # in ImageNet's devkit
Probe = tuple[int, int, int, bool]  # width, height, bytes, plain: see Manifest
Labelled = tuple[str, int]  # a file's path and its label


def prepare_folders(p: Folder | ImageNet) -> tuple[dict[str, Manifest], Info]:
    """The splits train, validation, captioned and test, and the facts about the data set.

    Raises InputError if folders, classes, the number of images or the devkit are not as the params
    say, and if more files than `p.unreadable` cannot be read.
    """
    root = Path(p.root)
    folders = _classes(p, root)
    found = {"train": in_folders(root / "train", folders)}
    flat = isinstance(p, ImageNet) and not subfolders(root / "val")
    found["val"] = _flat_validation(root, folders) if flat else in_folders(root / "val", folders)
    manifests: dict[str, Manifest] = {}
    unreadable: list[str] = []
    for part, files in found.items():
        manifests[part], broken = scan(root, files, part)
        unreadable += broken
    if unreadable:
        report_unreadable(unreadable, p.unreadable, "dataset.unreadable", root)
    for part, manifest in manifests.items():
        check_counts(manifest, folders, getattr(p, f"expect_{part}"), root / part)
    train, test = manifests["train"], manifests["val"]
    parts = divide(train.labels, p.validation, p.train_per_class, p.captioned_images, p.seed)
    splits = {name: train.take(ids) for name, ids in parts.items()}
    info = Info(
        name=p.name,
        classes=_names(p, folders),
        mean=MEAN,
        std=STD,
        folders=folders,
        unreadable=unreadable,
    )
    return splits | {"test": test}, info


# --- folders ------------------------------------------------------------------------------------


def subfolders(path: Path) -> list[str]:
    """The names of the folders in `path`, sorted; an empty list if `path` is no folder."""
    if not path.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def wnids() -> list[str]:
    """The folder names of ImageNet's 1,000 classes, in order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def _classes(p: Folder | ImageNet, root: Path) -> list[str]:
    """The classes' folders, sorted."""
    present = subfolders(root / "train")
    if not present:
        raise InputError(
            f"dataset.root is {p.root!r}: must hold train/<class>/ and val/<class>/, images in them"
        )
    if isinstance(p, ImageNet):
        known = wnids()
        if p.classes == "all" and present != known:
            wrong = sorted(set(present) ^ set(known))[0]
            raise InputError(
                f"{root}/train must hold the 1,000 classes of ImageNet, {wrong} is "
                f"{'missing' if wrong in known else 'none of them'}: name yours in dataset.classes"
            )
        if unknown := sorted(set(p.classes) - set(known)) if p.classes != "all" else []:
            raise InputError(f"dataset.classes has {unknown[0]!r}: no class of ImageNet")
    if p.classes == "all":
        return present
    if missing := [name for name in p.classes if name not in present]:
        raise InputError(f"dataset.classes has {missing[0]!r}: {root}/train has no such folder")
    return sorted(p.classes)


def _names(p: Folder | ImageNet, folders: Sequence[str]) -> list[str]:
    """The classes' readable names."""
    if isinstance(p, ImageNet):
        import open_clip

        names = dict(zip(wnids(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    elif p.names is None:
        names = {folder: folder.replace("_", " ") for folder in folders}
    else:
        names = read_json(p.names)
        if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
            raise InputError(f"{p.names} must hold one JSON object: a name for each folder")
        if missing := [folder for folder in folders if folder not in names]:
            raise InputError(f"{p.names} has no name for the class {missing[0]!r}")
    return [names[folder] for folder in folders]


def in_folders(path: Path, folders: Sequence[str]) -> list[Labelled]:
    """The image files in the `folders` of `path`, by folder and name, each with its label.

    A label is the position in `folders`. The files' paths are relative to the folder above `path`.
    Raises InputError if a class has no folder or no image.
    """
    files: list[Labelled] = []
    others = 0
    for label, folder in enumerate(folders):
        if not (path / folder).is_dir():
            raise InputError(f"{path} has no folder for the class {folder!r}")
        names = sorted(entry.name for entry in os.scandir(path / folder) if entry.is_file())
        images = [name for name in names if name.lower().endswith(SUFFIXES)]
        if not images:
            raise InputError(f"{path / folder} holds no image ({', '.join(SUFFIXES)})")
        others += len(names) - len(images)
        files += [(f"{path.name}/{folder}/{name}", label) for name in images]
    if others:
        print(f"{path}: {others} files that are no images ({', '.join(SUFFIXES)}) are left out")
    return files


def _flat_validation(root: Path, folders: Sequence[str]) -> list[Labelled]:
    """ImageNet's validation images in one folder, with the labels of the devkit beside it."""
    kits = [path.parent for path in root.glob(f"*/{TRUTH}")]
    every = (path.name for path in (root / "val").glob("*"))
    names = sorted(name for name in every if re.fullmatch(r"ILSVRC2012_val_\d+\.JPEG", name))
    if not kits or not names:
        raise InputError(
            f"{root}/val must hold a folder a class, or ILSVRC2012_val_*.JPEG and beside it the "
            f"devkit: <folder>/{TRUTH} and meta.mat"
        )
    wnid_of = _ground_truth(kits[0])
    label_of = {folder: label for label, folder in enumerate(folders)}
    files = []
    for name in names:
        number = int(Path(name).stem.split("_")[-1])
        if not 1 <= number <= len(wnid_of):
            raise InputError(f"{root}/val/{name}: the devkit knows {len(wnid_of)} images")
        if (wnid := wnid_of[number - 1]) in label_of:
            files.append((f"val/{name}", label_of[wnid]))
    return files


def _ground_truth(kit: Path) -> list[str]:
    """The class, by its folder name, of each validation image in the order of their numbers."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(kit / "meta.mat", squeeze_me=True)["synsets"])
        numbered = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if row["num_children"] == 0
        }
        return [numbered[int(line)] for line in (kit / Path(TRUTH).name).read_text().split()]
    except Exception as error:  # scipy's error depends on where the file is damaged
        raise InputError(f"{kit} is not ImageNet's devkit, or not whole: {error!r}") from None


def check_counts(
    manifest: Manifest, folders: Sequence[str], expected: int | None, where: Path
) -> None:
    """InputError if the number of images is not `expected`, or if a class has no image."""
    if expected is not None and len(manifest.labels) != expected:
        raise InputError(
            f"{where} must hold {expected:,} images that can be read, not {len(manifest.labels):,}"
        )
    counts = np.bincount(manifest.labels, minlength=len(folders))
    if not counts.all():
        empty = folders[int(counts.argmin())]
        raise InputError(f"{where} holds no image of {empty} that can be read")


# --- files --------------------------------------------------------------------------------------


def scan(root: Path, files: Sequence[Labelled], title: str) -> tuple[Manifest, list[str]]:
    """The manifest of those `files` that can be read, and the paths of the others.

    The files' paths are relative to `root`; `title` names the progress bar.
    """
    probes: list[Probe | None] = []
    paths = [path for path, _ in files]
    chunks = [paths[i : i + 500] for i in range(0, len(paths), 500)]
    with tqdm(total=len(files), desc=title, unit="file") as bar, ProcessPoolExecutor() as pool:
        for part in pool.map(partial(_probe_all, root), chunks):
            probes += part
            bar.update(len(part))
    readable = [(file, probe) for file, probe in zip(files, probes, strict=True) if probe]
    table = np.array([probe for _, probe in readable], np.int64).reshape(-1, 4)
    manifest = Manifest(
        str(root),
        [path for (path, _), _ in readable],
        np.array([label for (_, label), _ in readable], np.int64),
        table[:, :2].astype(np.int32),
        table[:, 2],
        table[:, 3].astype(bool),
    )
    return manifest, [path for (path, _), probe in zip(files, probes) if not probe]


def _probe_all(root: Path, paths: Sequence[str]) -> list[Probe | None]:
    return [probe(root / path) for path in paths]


def probe(path: Path) -> Probe | None:
    """Width, height, bytes and plain of a file, as Manifest has them; None if it is broken."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            turn = image.getexif().get(ORIENTATION, 1)
            plain = image.format == "JPEG" and image.mode in ("RGB", "L") and turn == 1
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(len(END), size), os.SEEK_END)
            # Some JPEGs have bytes behind their end mark: they are decoded like the other formats.
            # A broken PNG must be found here: torchvision 0.29 would end the process without an
            # error.
            if image.format != "JPEG" or file.read() != END:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return (height, width, size, plain) if turn in ON_THEIR_SIDE else (width, height, size, plain)


def report_unreadable(paths: Sequence[str], limit: int, param: str, root: Path) -> None:
    """Print how many files cannot be read, and the first ten of them.

    Raises InputError if there are more than `limit`, which is what `param` allows.
    """
    named = ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
    said = f"{len(paths)} files below {root} cannot be read: {named}"
    if len(paths) > limit:
        raise InputError(f"{said}; {param} allows {limit}")
    print(f"{said}; they are left out")
