"""Images in folders, one folder for each class: ImageNet and other sets. The files stay in place.

The name of a class is the folder's name with composed letters (Unicode's NFC): "é" can be written
as one character or as two, and some systems and archives change one into the other.
Every file is opened once, to get its size and to see whether it is whole. A JPEG counts as whole if
its last two bytes are the end mark; other files are decoded. A JPEG that is damaged in the middle
is found only later, when it is decoded.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from richkd.base.checkout import locate, places
from richkd.base.errors import InputError, one_line
from richkd.data.dataset import Info, Manifest
from richkd.data.image_names import SUFFIXES, hidden
from richkd.data.pictures import open_image, orientation, printable, upright
from richkd.data.splits import divide
from richkd.params import Folder, ImageNet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as everybody uses them
END = b"\xff\xd9"  # the end mark of a JPEG
ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF's orientations that swap width and height
NAMES_BYTES = 10**7  # the largest file of class names, which is read whole
LISTED = 150  # the most characters of file names in one line
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # in ImageNet's devkit
# Width, height, bytes and plain as in Manifest, and whether the image is transparent.
Probe = tuple[int, int, int, bool, bool]
Labelled = tuple[str, int]  # a file's path and its label


def prepare_folders(p: Folder | ImageNet) -> tuple[dict[str, Manifest], Info]:
    """The splits train, validation, captioned and test, and the facts about the data set.

    Raises InputError if folders, classes, the number of images or the devkit are not as the params
    say, and if more files than `p.unreadable` cannot be read.
    """
    root = locate(p.root, "train")
    folders = _classes(p, root)
    names = _names(p, folders)
    found = {"train": in_folders(root / "train", folders)}
    flat = isinstance(p, ImageNet) and not subfolders(root / "val")
    found["val"] = _flat_validation(root, folders) if flat else in_folders(root / "val", folders)
    manifests: dict[str, Manifest] = {}
    unreadable: dict[str, str] = {}
    for part, files in found.items():
        manifest, broken = scan(root, files, part)
        # The path as in the params, so that a run in a temporary copy writes the same records.
        manifests[part] = manifest._replace(root=str(Path(p.root)))
        unreadable |= broken
    if unreadable:
        report_unreadable(unreadable, p.unreadable, "dataset.unreadable", root)
    for part, manifest in manifests.items():
        check_counts(manifest, folders, getattr(p, f"expect_{part}"), root / part)
    train, test = manifests["train"], manifests["val"]
    parts = divide(
        train.labels, p.validation, p.train_per_class, p.captioned_images, p.seed, folders
    )
    splits = {name: train.take(ids) for name, ids in parts.items()}
    check_parts(p, splits, folders)
    info = Info(
        name=p.name,
        classes=names,
        mean=MEAN,
        std=STD,
        folders=folders,
        unreadable=[printable(path) for path in unreadable],
    )
    return splits | {"test": test}, info


# --- folders ------------------------------------------------------------------------------------


def subfolders(path: Path) -> dict[str, str]:
    """The folders in `path`: {class: the folder's name}, sorted; empty if `path` is no folder.

    Hidden folders are passed over. Raises InputError if two folders are one class.
    """
    found: dict[str, str] = {}
    for entry in os.scandir(path) if path.is_dir() else ():
        if entry.is_dir() and not hidden(entry.name):
            name = unicodedata.normalize("NFC", entry.name)
            if name in found:
                raise InputError(
                    f"{path} has two folders for the class {name!r}, with letters composed and "
                    "decomposed: must be one folder"
                )
            found[name] = entry.name
    return dict(sorted(found.items()))


def wnids() -> list[str]:
    """The folder names of ImageNet's 1,000 classes, in order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def _classes(p: Folder | ImageNet, root: Path) -> list[str]:
    """The classes, sorted."""
    present = list(subfolders(root / "train"))
    if not present:
        raise InputError(
            f"dataset.root: {places(p.root)} must hold train/<class>/ and val/<class>/, images in "
            "them"
        )
    known = wnids() if isinstance(p, ImageNet) else present
    if p.classes == "all":
        classes = present
        if wrong := sorted(set(present) ^ set(known)):
            raise InputError(
                f"{root}/train must hold the 1,000 classes of ImageNet, {wrong[0]} is "
                f"{'missing' if wrong[0] in known else 'none of them'}: name yours in "
                "dataset.classes"
            )
    else:
        classes = sorted({unicodedata.normalize("NFC", name) for name in p.classes})
        if isinstance(p, ImageNet) and (unknown := sorted(set(classes) - set(known))):
            raise InputError(f"dataset.classes has {unknown[0]!r}: no class of ImageNet")
        if missing := [name for name in classes if name not in present]:
            raise InputError(f"dataset.classes has {missing[0]!r}: {root}/train has no such folder")
    if len(classes) < 2:
        raise InputError(
            f"the data set has the class {classes[0]!r} alone: {root}/train and dataset.classes "
            "must have two"
        )
    if broken := [name for name in classes if not _is_utf8(name)]:
        raise InputError(f"{root}/train/{printable(broken[0])}: a class's name must be UTF-8")
    return classes


def _is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: file names and JSON may hold half characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _names(p: Folder | ImageNet, folders: Sequence[str]) -> list[str]:
    """The classes' readable names."""
    if isinstance(p, ImageNet):
        import open_clip

        names = dict(zip(wnids(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    elif p.names is None:
        names = {folder: folder.replace("_", " ").strip() for folder in folders}
    else:
        names = _read_names(p.names)
        if missing := [folder for folder in folders if folder not in names]:
            raise InputError(f"{p.names} has no name for the class {missing[0]!r}")
    if isinstance(p, Folder):
        _check_names(p, {folder: names[folder] for folder in folders})
    return [names[folder] for folder in folders]


def _check_names(p: Folder, names: Mapping[str, str]) -> None:
    """InputError for an empty name, and for two classes that CLIP cannot tell apart by name."""
    seen: dict[str, str] = {}
    for folder, name in names.items():
        if not name.strip():
            raise InputError(f"the class {folder!r} has the name {name!r}: must be text")
        # CLIP's tokenizer makes letters small, and takes several spaces for one.
        other = seen.setdefault(" ".join(name.lower().split()), folder)
        if other != folder:
            raise InputError(
                f"the classes {other!r} and {folder!r} are both called {name!r}: give them names "
                f"that differ in {p.names or 'dataset.names'}, or make them one folder"
            )


def _read_names(path: str) -> dict[str, str]:
    """{class: its name} from a JSON file: UTF-8, or UTF-16 or UTF-32 with a byte order mark."""
    try:
        with open(locate(path), "rb") as file:
            content = file.read(NAMES_BYTES + 1)
        if len(content) > NAMES_BYTES:
            raise InputError(f"{path} is too large: must be at most {NAMES_BYTES // 10**6} MB")
        names = json.loads(content, object_pairs_hook=partial(_distinct, path))
    except OSError as error:
        raise InputError(f"{places(path)} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8: byte {error.start} is not") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits
        raise InputError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
        raise InputError(f"{path} must hold one JSON object: a name for each folder")
    for folder, name in names.items():
        if not name.strip() or not _is_utf8(name):
            raise InputError(f"{path} names the class {folder!r} {name!r}: must be text")
    return names


def _distinct(path: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object. InputError if two of them are for one class."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        folder = unicodedata.normalize("NFC", key)
        if folder in found:
            raise InputError(f"{path} names the class {folder!r} twice: must name it once")
        found[folder] = value
    return found


def in_folders(path: Path, classes: Sequence[str]) -> list[Labelled]:
    """The image files of the `classes` in `path`, by class and name, each with its label.

    A label is the position in `classes`. The files' paths are relative to the folder above `path`.
    A link that leads nowhere is a file that cannot be read. Prints what is left out. Raises
    InputError if a class has no folder or no image.
    """
    present = subfolders(path)
    files: list[Labelled] = []
    left_out = Counter({"classes that are not in the data set": len(present.keys() - set(classes))})
    left_out["images that lie in no class's folder"] = _images_in(path) if path.is_dir() else 0
    for label, name in enumerate(classes):
        if name not in present:
            raise InputError(f"{path} has no folder for the class {name!r}")
        folder = path / present[name]
        every = (entry for entry in os.scandir(folder) if not hidden(entry.name))
        entries = sorted(every, key=lambda entry: entry.name)
        images = [entry.name for entry in entries if _is_image(entry)]
        inner = [entry for entry in entries if entry.is_dir()]
        deeper = sum(map(_images_below, inner))
        if not images:
            where = f", but {deeper} in folders below it" if deeper else ""
            raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)}){where}")
        others = len(entries) - len(images) - len(inner)
        left_out[f"files that are not images ({', '.join(SUFFIXES)})"] += others
        left_out["images in folders below a class's folder"] += deeper
        files += [(f"{path.name}/{present[name]}/{image}", label) for image in images]
    _report_left_out(path, left_out)
    return files


def _report_left_out(path: Path, counts: Mapping[str, int]) -> None:
    for what, count in counts.items():
        if count:
            print(f"{path}: {count} {what} are left out")


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether its name is an image's, and it is a file or a link that leads nowhere."""
    named = entry.name.lower().endswith(SUFFIXES) and not hidden(entry.name)
    return named and (entry.is_file() or entry.is_symlink() and not os.path.exists(entry))


def _images_in(folder: Path | str) -> int:
    return sum(map(_is_image, os.scandir(folder)))


def _images_below(folder: os.DirEntry[str]) -> int:
    """The number of images in the folder and in all folders below it."""
    count = 0
    for place, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]  # os.walk enters only these
        count += _images_in(place)
    return count


def _flat_validation(root: Path, folders: Sequence[str]) -> list[Labelled]:
    """ImageNet's validation images in one folder, with the labels of the devkit beside it."""
    kits = [path.parent for path in root.glob(f"*/{TRUTH}")]
    every = os.listdir(root / "val") if (root / "val").is_dir() else []
    every = [name for name in every if not hidden(name)]
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
    left_out = {
        "files that are not validation images": len(every) - len(names),
        "images of classes that are not in the data set": len(names) - len(files),
    }
    _report_left_out(root / "val", left_out)
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
        raise InputError(f"{kit} is not ImageNet's devkit, or damaged: {error!r}") from None


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


def check_parts(
    p: Folder | ImageNet, splits: Mapping[str, Manifest], folders: Sequence[str]
) -> None:
    """InputError if some class has no image in a validation or captioned part that has images."""
    sizes = np.bincount(splits["train"].labels, minlength=len(folders))
    for name, key in (("validation", "validation"), ("captioned", "captioned_images")):
        counts = np.bincount(splits[name].labels, minlength=len(folders))
        if counts.any() and not counts.all():
            first = int(counts.argmin())
            raise InputError(
                f"dataset.{key} is {getattr(p, key)}: leaves no {name} image of the class "
                f"{folders[first]!r}, which has {sizes[first]} for training; must be 0 or at least "
                f"{len(folders)}, one for each class"
            )


# --- files --------------------------------------------------------------------------------------


def scan(root: Path, files: Sequence[Labelled], title: str) -> tuple[Manifest, dict[str, str]]:
    """The manifest of those `files` that can be read, and of the others {path: why not}.

    The files' paths are relative to `root`; `title` names the progress bar. Prints how many images
    are transparent.
    """
    probes: list[Probe | str] = []
    paths = [path for path, _ in files]
    chunks = [paths[i : i + 500] for i in range(0, len(paths), 500)]
    with tqdm(total=len(files), desc=title, unit="file") as bar, ProcessPoolExecutor() as pool:
        for part in pool.map(partial(_probe_all, root), chunks):
            probes += part
            bar.update(len(part))
    found = list(zip(files, probes, strict=True))
    readable = [(file, probe) for file, probe in found if not isinstance(probe, str)]
    table = np.array([probe for _, probe in readable], np.int64).reshape(-1, 5)
    if transparent := table[:, 4].sum():
        print(f"{title}: {transparent} images are transparent in places, which are made white")
    manifest = Manifest(
        str(root),
        [path for (path, _), _ in readable],
        np.array([label for (_, label), _ in readable], np.int64),
        table[:, :2].astype(np.int32),
        table[:, 2],
        table[:, 3].astype(bool),
    )
    return manifest, {path: probe for (path, _), probe in found if isinstance(probe, str)}


def _probe_all(root: Path, paths: Sequence[str]) -> list[Probe | str]:
    return [probe(root / path) for path in paths]


def probe(path: Path) -> Probe | str:
    """The facts about a file that can be read, or the reason why it cannot be read.

    The reason is an empty text for a file that is damaged.
    """
    try:
        with open(path, "rb") as file, open_image(file) as image:
            width, height = image.size
            turn, transparent = orientation(image), False
            plain = image.format == "JPEG" and image.mode in ("RGB", "L") and turn == 1
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(len(END), size), os.SEEK_END)
            # Some JPEGs have bytes behind their end mark: they are decoded like the other formats.
            if image.format != "JPEG" or file.read() != END:
                decoded, transparent = upright(image)
                width, height = decoded.size
            elif turn in ON_THEIR_SIDE:
                width, height = height, width
    except InputError as error:
        return str(error)
    except FileNotFoundError:
        return "the link leads nowhere" if path.is_symlink() else "it is gone"
    except PermissionError as error:
        return str(error.strerror)
    except Exception:  # PIL's error depends on where the file is broken
        return ""
    return width, height, size, plain, transparent


def report_unreadable(reasons: Mapping[str, str], limit: int, param: str, root: Path) -> None:
    """Print how many files cannot be read, and the first of them; `reasons` has why, by path.

    Raises InputError if there are more than `limit`, which is what `param` allows.
    """
    listed: list[str] = []
    for path, reason in reasons.items():
        named = printable(path) + (f" ({reason})" if reason else "")
        if listed and sum(map(len, [*listed, named])) > LISTED:
            listed.append("...")
            break
        listed.append(named)
    said = f"{len(reasons)} files below {root} cannot be read: {', '.join(listed)}"
    if len(reasons) > limit:
        raise InputError(f"{said}; {param} allows {limit}")
    print(f"{said}; they are left out")
