"""CIFAR-100 and CIFAR-10 from their official archives, divided into splits."""

import codecs
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from richkd.base.checkout import locate
from richkd.base.download import fetch, members, verify
from richkd.base.errors import InputError, one_line
from richkd.data.dataset import Split
from richkd.data.splits import divide
from richkd.params import Cifar


class Archive(NamedTuple):
    """An official archive: its members, the keys of the dicts in the members, and the counts."""

    file: str
    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str
    classes: int
    train_per_class: int
    test_per_class: int
    # For superclasses, if there are some: the keys of their labels and names, and their number.
    coarse: tuple[str, str, int] | None = None


ARCHIVES = {
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        md5="md5:eb9058c3a382ffc7106e4002c42a8d85",
        train=("cifar-100-python/train",),
        test=("cifar-100-python/test",),
        meta="cifar-100-python/meta",
        labels="fine_labels",
        names="fine_label_names",
        classes=100,
        train_per_class=500,
        test_per_class=100,
        coarse=("coarse_labels", "coarse_label_names", 20),
    ),
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        md5="md5:c58f30108f718f92721af3b95e74349a",
        train=tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        test=("cifar-10-batches-py/test_batch",),
        meta="cifar-10-batches-py/batches.meta",
        labels="labels",
        names="label_names",
        classes=10,
        train_per_class=5000,
        test_per_class=1000,
    ),
}

# The functions that a pickled array of numbers looks up, by their names in Python 2's numpy and in
# numpy 2.
PICKLED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
}


OPCODES = 10**7  # of a pickle, twenty times what the training images of CIFAR-100 have

# Opcodes that neither arrays nor text need: sets, and other ways to call something.
REFUSED = (
    pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.INST, pickle.OBJ, pickle.NEWOBJ,
    pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID,
)  # fmt: skip


class _Pickle(BytesIO):
    """A pickle's bytes, for as many reads as there may be opcodes."""

    left = OPCODES

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it has more than {OPCODES:,} parts")
        return super().read(size)


# Python's own, not the one in C: each opcode can be checked before it is done. A container that
# holds another one twice, which holds a third one twice, and so on, takes for ever to hash, to
# print or to make a dtype of. So keys are text, and functions get plain values.
_Python: Any = pickle._Unpickler  # type: ignore[attr-defined, unused-ignore]


class _Unpickler(_Python):
    """Unpickles arrays of numbers, strings, lists and dicts, and refuses everything else."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: load for code, load in _Python.dispatch.items() if code not in b"".join(REFUSED)
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    def load_frame(self) -> None:
        self.read(8)  # the frame's length; without frames each opcode is a read of `_Pickle`

    def load_setitem(self) -> None:
        _refuse_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _refuse_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _refuse_keys(self.stack[::2])
        super().load_dict()

    def load_reduce(self) -> None:
        function, arguments = self.stack[-2:]
        _refuse_nested(arguments)
        if function is codecs.encode and arguments[1:] != ("latin1",):  # others can be slow
            raise pickle.UnpicklingError("it encodes text in another way than latin1")
        super().load_reduce()

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], np.ndarray | np.dtype):
            raise pickle.UnpicklingError("it sets the state of something that is not an array")
        _refuse_nested(self.stack[-1])
        super().load_build()

    dispatch |= {
        pickle.FRAME[0]: load_frame,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
    }


def _refuse_keys(keys: list[Any]) -> None:
    if not all(isinstance(key, str | bytes) for key in keys):
        raise pickle.UnpicklingError("a dict's key is not text")


def _refuse_nested(values: Any) -> None:
    """Allowed are a tuple of plain values, and tuples of plain values in it."""
    flat = [x for value in values for x in (value if isinstance(value, tuple) else [value])]
    if not isinstance(values, tuple) or any(isinstance(x, tuple | list | dict) for x in flat):
        raise pickle.UnpicklingError("an array is described by nested containers")


def read_cifar(path: Path | str, name: str) -> tuple[Split, Split, list[str], dict[str, str]]:
    """Training images, test images, the classes' names, and {class's name: superclass's name}.

    Names have spaces between words. CIFAR-10 has no superclasses.

    path: the archive of ARCHIVES[name], or another one in the same layout. Images uint8
    (N, 32, 32, 3) and labels int64 (N,), in the archive's order.
    Raises InputError if the archive is damaged, if the number of images, of classes or of images a
    class is wrong, and if a pickle looks up more than arrays need.
    """
    archive = ARCHIVES[name]
    labels_of, names_of, count = archive.coarse or ("", "", 0)
    pairs: set[tuple[int, int]] = set()  # labels of a class and of its superclass
    with members(path) as files:
        meta, where = _load(files, archive.meta, path), f"{path}: {archive.meta}"
        classes = _names(meta, archive.names, archive.classes, where)
        coarse = _names(meta, names_of, count, where) if archive.coarse else []
        splits = []
        for parts, per_class in (
            (archive.train, archive.train_per_class),
            (archive.test, archive.test_per_class),
        ):
            batches = []
            for part in parts:
                content, where = _load(files, part, path), f"{path}: {part}"
                images = _images(content, where)
                labels = _labels(content, archive.labels, archive.classes, len(images), where)
                batches.append(Split(images, labels))
                if archive.coarse:
                    kinds = _labels(content, labels_of, count, len(images), where)
                    pairs |= set(zip(labels.tolist(), kinds.tolist()))
            split = Split(*(np.concatenate(arrays) for arrays in zip(*batches)))
            _check_counts(split.labels, per_class, classes, f"{path}: {', '.join(parts)}")
            splits.append(split)
    if archive.coarse and len(pairs) != archive.classes:
        raise InputError(f"{path}: {labels_of} must give each class one superclass")
    train, test = splits
    return train, test, classes, {classes[fine]: coarse[kind] for fine, kind in sorted(pairs)}


def _load(files: dict[str, Callable[[], bytes]], member: str, path: Path | str) -> dict[str, Any]:
    """The dict that is pickled in a member of the archive."""
    where = f"{path}: {member}"
    if member not in files:
        raise InputError(f"{where} is missing")
    try:
        # Python 2 pickled its strings as bytes. latin1 keeps every byte.
        content = _Unpickler(_Pickle(files[member]()), encoding="latin1").load()
    except KeyError as error:
        raise InputError(f"{where} could not be unpickled: opcode {error} is refused") from None
    except Exception as error:  # a damaged pickle can raise any error
        raise InputError(f"{where} could not be unpickled: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} must hold a dict, not {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _names(content: dict[str, Any], key: str, count: int, where: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or len(names) != count:
        raise InputError(f"{where} must hold {key}, a list of {count}")
    if not all(isinstance(x, str | bytes) for x in names):
        raise InputError(f"{where}: {key} must be text")
    return [_text(x).replace("_", " ") for x in names]


def _value(content: dict[str, Any], key: str, where: str) -> Any:
    if key not in content:
        others = ", ".join(name[:30] for name in sorted(content)[:6])
        raise InputError(f"{where} has no {key}, only {others}")
    return content[key]


def _images(content: dict[str, Any], where: str) -> npt.NDArray[np.uint8]:
    """The images of one member, whose dict is `content`."""
    data = _value(content, "data", where)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        array = isinstance(data, np.ndarray)
        found = f"{data.dtype.name} {data.shape}" if array else type(data).__name__
        raise InputError(f"{where}: data must be uint8 (N, 3072), not {found}")
    # A row of `data` is the red plane, then the green and the blue one, each row by row.
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(
    content: dict[str, Any], key: str, classes: int, images: int, where: str
) -> npt.NDArray[np.int64]:
    """The labels of one member under `key`, one an image."""
    labels = _value(content, key, where)
    if not isinstance(labels, list) and np.ndim(labels) != 1 or len(labels) != images:
        raise InputError(f"{where}: {key} must be {images} numbers, one an image")
    for label in labels:
        if not isinstance(label, int | np.integer) or not 0 <= label < classes:
            short = isinstance(label, int | float | np.integer) and -1e9 < label < 1e9
            found = label if short else type(label).__name__  # others can be long or nested
            raise InputError(f"{where}: {key} must be 0 to {classes - 1}, not {found}")
    return np.array(labels, np.int64)


def _check_counts(
    labels: npt.NDArray[np.int64], per_class: int, classes: list[str], where: str
) -> None:
    if len(labels) != (needed := per_class * len(classes)):
        raise InputError(f"{where} must hold {needed} images, not {len(labels)}")
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes))):
        if count != per_class:
            raise InputError(f"{where} must hold {per_class} images a class, not {count} of {name}")


def prepare_cifar(p: Cifar) -> tuple[dict[str, Split], list[str], dict[str, str]]:
    """The splits train, validation, captioned and test, classes and superclasses by name.

    Downloads the archive if the params name no local one. Raises InputError if the archive is not
    to be had or not as published, and if the splits need more images than there are.
    """
    archive = ARCHIVES[p.name]
    checksum = f"sha256:{p.sha256}" if p.sha256 else archive.md5
    if p.archive is None:
        path = fetch(p.urls, archive.file, checksum, "set dataset.archive to a local copy")
    else:
        path = locate(p.archive)
        whose = "dataset.sha256" if p.sha256 else "the official one, where dataset.sha256 is null"
        verify(path, checksum, f"dataset.archive, checked against {whose}")
    official, test, classes, superclasses = read_cifar(path, p.name)
    parts = divide(
        official.labels, p.validation, p.train_per_class, p.captioned_images, p.seed, classes
    )
    splits = {
        name: Split(official.images[ids], official.labels[ids]) for name, ids in parts.items()
    }
    return splits | {"test": test}, classes, superclasses
