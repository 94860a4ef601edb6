"""Trained models on disk: a safetensors file, and beside it a JSON record of what the model is.

The record has all that is needed to build the model again (`kind` and its arguments, mean and std
of the input), and where the model comes from: params, versions, device, seed, hashes of the data,
metrics.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from richkd.base.errors import InputError, one_line
from richkd.base.files import replacing, write_json


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, device and number of threads, for the record beside a model."""
    cuda = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name) for name in ("torch", "open_clip_torch", "numpy", "safetensors")
            },
        },
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def save(path: Path | str, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write the tensors to `path`.safetensors and the record to `path`.json."""
    with replacing(f"{path}.safetensors") as part:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part)
    write_json(f"{path}.json", record)


def paths(folder: Path | str) -> list[Path]:
    """The models in a folder in the order of their seeds, as paths without suffix.

    Raises InputError if the folder has no model.
    """
    found = sorted(Path(folder).glob("seed*.json"), key=lambda path: int(path.stem[4:]))
    if not found:
        raise InputError(f"{folder} holds no model")
    return [path.with_suffix("") for path in found]


def read_tensors(source: Path | str | IO[bytes]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a file that torch.save wrote.

    torch.save may have written a state_dict, or a dict that has the state_dict under `model`; only
    tensors are unpickled. An open file has a `name`, for errors. Raises InputError if the file is
    damaged or holds something else.
    """
    name = _name(source)
    try:
        if str(name).endswith(".safetensors"):
            return load_file(name)
        found = torch.load(source, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{name} is not whole: {error}") from None
    except Exception as error:  # torch's error depends on where the file is damaged
        reason = one_line(error)
        raise InputError(f"{name} is no file of weights alone, or not whole: {reason}") from None
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not all(torch.is_tensor(x) for x in found.values()):
        raise InputError(f"{name} holds no state_dict, neither as it is nor under 'model'")
    return found


def load_into(model: nn.Module, source: Path | str | IO[bytes]) -> None:
    """Load the weights `read_tensors(source)` into the model.

    Raises InputError, which names the first parameter that does not fit, and both shapes.
    """
    found = read_tensors(source)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*needed, *found]:
        have = tuple(found[name].shape) if name in found else "missing"
        if have != needed.get(name, "unknown"):
            raise InputError(
                f"{_name(source)} is of another model: {name} is {have} there, "
                f"{needed.get(name, 'unknown')} here"
            )
    model.load_state_dict(found)


def _name(source: Path | str | IO[bytes]) -> Path | str:
    return source if isinstance(source, Path | str) else source.name
