"""The JSON record beside a model's weights, and which models a folder holds; without torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict

from richkd.base.errors import InputError
from richkd.base.records import read_json


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class ModelRecord(TypedDict):
    """What every record holds: where the model was made, and which models were saved with it.

    `saved_together` names all models of the folder, `seed0`, `seed1` and so on, itself among them.
    """

    saved_together: Annotated[
        list[Annotated[str, Field(pattern=r"^seed\d{1,10}$")]], Field(min_length=1)
    ]
    versions: dict[str, str]
    device: str
    threads: int


# A number a channel. A side of more pixels is no side, but a damaged record.
Mean = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
Sd = Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=3, max_length=3)]
Side = Annotated[int, Field(ge=1, le=10_000)]
Interpolation = Literal[
    "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"
]
ResizeMode = Literal["shortest", "longest", "squash"]
Fill = Annotated[int, Field(ge=0, le=255)]


@with_config(ConfigDict(extra="allow"))
class RecordedCenter(TypedDict):
    """`richkd.data.views.Center`: how image files are cut for the model."""

    resize: Side
    size: Side
    interpolation: Interpolation
    resize_mode: ResizeMode
    fill: Fill


def paths(folder: Path | str) -> list[Path]:
    """The models in a folder in the order of their seeds, as paths without suffix.

    Raises InputError if the folder has no model, one model less than were saved together, or one
    more.
    """
    found = {path.stem for path in Path(folder).glob("seed*.json")}
    if not found:
        raise InputError(f"{folder} holds no model")
    together = read_json(f"{folder}/{min(found)}.json", ModelRecord)["saved_together"]
    for name in together:
        for path in (Path(folder, f"{name}.json"), Path(folder, f"{name}.safetensors")):
            if not path.exists():
                raise InputError(
                    f"{path} is missing: {folder} was saved with {len(together)} models, "
                    f"{', '.join(together)}; run `dvc repro`"
                )
    if more := sorted(found - set(together)):
        raise InputError(
            f"{folder}/{more[0]}.json was not saved with {', '.join(together)}: remove it"
        )
    return [Path(folder, name) for name in sorted(together, key=lambda name: int(name[4:]))]
