"""Reading what stages wrote: JSON, CSV, `.npy` and safetensors; any damage is one line.

What a record must hold is said by a schema, kept beside the code that writes the record: a type
that pydantic can check.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from richkd.base.errors import InputError, one_line

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]  # None: of any length

CHUNK = 2**22  # numbers that are looked at together: a mapped array need not fit into memory


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever a library raises while it reads `path` becomes an InputError of one line.

    The block is the library's call alone: a mistake of ours in it would be blamed on the file.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise InputError(f"{path} {_explain(error)}") from None
    except Exception as error:  # which error depends on where the file is damaged
        text = one_line(error) or type(error).__name__
        raise InputError(f"{path} is damaged: {text}") from None


def read_json(path: Path | str, schema: Any = Any) -> Any:
    """The content of a JSON file, as the type `schema` has it.

    Raises InputError if the file cannot be read, is damaged, or does not hold what the schema says.
    """
    with reading(path):
        return _adapter(schema).validate_json(Path(path).read_bytes(), strict=True)


def read_csv(path: Path | str, columns: Mapping[str, Any], key: Sequence[str] = ()) -> pd.DataFrame:
    """The table in a CSV file.

    `columns` has the type of each column that must be there; others may stand beside them. No two
    rows have the same values in the columns `key`. Raises InputError if the file cannot be read, is
    damaged, or does not hold what this says.
    """
    import pandas as pd  # most stages read no table, and the import takes a third of a second

    with reading(path), warnings.catch_warnings():
        # That rows are longer than the header is only warned of.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(path, index_col=False)
    for name, kind in columns.items():
        if name not in table:
            raise InputError(f"{path} has no column {name!r}: run `dvc repro`")
        with reading(f"{path}: column {name!r}"):
            _adapter(list[kind]).validate_python(table[name].tolist(), strict=True)  # type: ignore[valid-type]
    if key and table.duplicated(list(key)).any():
        raise InputError(f"{path} has two rows of the same {' and '.join(key)}: run `dvc repro`")
    return table


def read_array(
    path: Path | str,
    dtypes: str,
    shape: Shape,
    mode: Literal["r", "c"] | None = None,
    finite: bool = True,
) -> Array:
    """The array in a `.npy` file; with a `mode` of numpy's it is mapped from the disk.

    `dtypes` and `shape` as in `check_array`. With `finite` the numbers are read once, and checked.
    Raises InputError if the file cannot be read, is damaged, or holds another array.
    """
    with reading(path), np.errstate(over="raise"):
        # Mapped first: a header that declares more than the file holds takes no memory.
        mapped: Array = np.lib.format.open_memmap(path, mode=mode or "r")
        array = np.asarray(mapped) if mode else np.array(mapped)
        size = Path(path).stat().st_size
    needed = mapped.offset + mapped.nbytes  # type: ignore[attr-defined]
    if size != needed:
        raise InputError(f"{path} is damaged: it has {size} bytes, its header says {needed}")
    check_array(path, array, dtypes, shape)
    if finite:
        check_finite(path, array)
    return array


def read_safetensors(path: Path | str) -> dict[str, Array]:
    """The arrays in a safetensors file by name. InputError if it is damaged or cannot be read."""
    with reading(path):
        try:
            return load_file(path)
        except KeyError as error:  # a dtype that numpy does not have
            raise SafetensorError(f"it has numbers of the kind {error}") from None


def check_array(where: Path | str, array: Array, dtypes: str, shape: Shape) -> None:
    """Raise InputError, which begins with `where`, for an array of another dtype or shape.

    `dtypes` are the names of those allowed: "float16 float32".
    """
    lengths = [has == needed or needed is None for has, needed in zip(array.shape, shape)]
    if array.dtype.name not in dtypes.split() or array.ndim != len(shape) or not all(lengths):
        needed = ", ".join("any" if x is None else str(x) for x in shape)
        raise InputError(
            f"{where} holds {array.dtype.name} {array.shape}: "
            f"must be {' or '.join(dtypes.split())} ({needed})"
        )


def check_finite(where: Path | str, array: Array) -> None:
    """Raise InputError, which begins with `where`, for NaN or infinity in a contiguous array."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        if not np.isfinite(flat[start : start + CHUNK]).all():
            raise InputError(f"{where} holds NaN or infinity")


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _explain(error: ValidationError) -> str:
    """What a file does not hold as it should: the first finding."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"is damaged: {one_line(first['msg'])}"
    place = ".".join(str(part) for part in first["loc"]) or "its content"
    found = one_line(f"{place}: {first['msg']}")
    return f"is damaged or of another version of this code ({found}): run `dvc repro`"
