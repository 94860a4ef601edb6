"""Trained models on disk: a safetensors file, and beside it a JSON record of what the model is.

The record has all that is needed to build the model again (`kind` and its arguments, mean and std
of the input), and where the model comes from: params, versions, device, seed, hashes of the data,
metrics.
"""

import platform
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from richkd.base.errors import InputError, one_line
from richkd.base.files import replacing, write_json
from richkd.base.records import reading

# Where published checkpoints have the state_dict, the first that is there.
STATE_KEYS = ("state_dict", "model", "net", "model_state_dict")
# The name of a class or function in torch's errors: one that is not on its list, one of a module
# that it never allows, or one that is built in another way than torch does it.
REFUSED = re.compile(r"(?:GLOBAL|got <class) '?([\w.]+)'?(?: was not| whose module|>)")


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
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({processor()})",
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The name of the CPU, or of its architecture if the system does not tell the CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return found[1] if found else platform.machine()


def save(path: Path | str, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write the tensors to `path`.safetensors and the record to `path`.json.

    A model that is alone in its folder needs no `saved_together` in its record. Raises InputError,
    before anything is written, if a tensor is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{path} is not saved: {name} holds NaN or infinity, so its training has diverged"
            )
    with replacing(f"{path}.safetensors") as part:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part)
    write_json(f"{path}.json", {"saved_together": [Path(path).name], **record})


def read_tensors(source: Path | str | IO[bytes]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a file that torch.save wrote, by parameter name.

    torch.save may have written a state_dict, or a dict that has it under one of STATE_KEYS. What
    DataParallel and torch.compile put before all names is taken off. Only tensors and plain Python
    values are unpickled. An open file has a `name`, for errors. Raises InputError if the file is
    damaged or holds something else.
    """
    name = _name(source)
    if str(name).endswith(".safetensors"):
        with reading(name):
            return _without_wrappers(load_file(name))
    found = _unpickle(source)
    if isinstance(found, dict):
        found = next((found[key] for key in STATE_KEYS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and torch.is_tensor(x) for key, x in found.items()
    ):
        keys = ", ".join(STATE_KEYS)
        raise InputError(f"{name} holds no state_dict, neither as it is nor under one of {keys}")
    return _without_wrappers(found)


def load_into(model: nn.Module, source: Path | str | IO[bytes]) -> None:
    """Load the weights `read_tensors(source)` into the model.

    Files saved before torch 0.4.1 lack `num_batches_tracked`, which nothing here uses: the model
    keeps its own. Raises InputError, which names the first parameter that does not fit, and both
    shapes; or the first that `check_numbers` refuses.
    """
    found, own = read_tensors(source), model.state_dict()
    tracked = {k: x for k, x in own.items() if k.endswith(".num_batches_tracked")}
    found = tracked | found
    needed = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for name in [*needed, *found]:
        have = _shape(found[name]) if name in found else "missing"
        if have != needed.get(name, "unknown"):
            raise InputError(
                f"{_name(source)} is of another model: {name} is {have} there, "
                f"{needed.get(name, 'unknown')} here"
            )
    check_numbers(_name(source), found, own)
    model.load_state_dict(found)


def check_numbers(
    file: Path | str, found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Raise InputError for the first tensor of `found` that is no dense tensor of finite numbers.

    Whole numbers are refused where the model has floating-point ones, complex numbers everywhere.
    `own` has the model's tensors by name; others are not looked at.
    """
    for name, mine in own.items():
        if (tensor := found.get(name)) is None:
            continue
        if wrong := _not_dense(tensor):
            raise InputError(f"{file}: {name} is {wrong}, must be a dense tensor")
        whole = mine.is_floating_point() and not tensor.is_floating_point()
        if whole or tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{file}: {name} is {kind}, must be {str(mine.dtype).removeprefix('torch.')}"
            )
        if not torch.isfinite(tensor.float()).all():
            raise InputError(f"{file}: {name} holds NaN or infinity")


def _not_dense(tensor: torch.Tensor) -> str | None:
    kinds = {"nested": tensor.is_nested, "quantised": tensor.is_quantized}
    kinds |= {"sparse": tensor.layout != torch.strided, "without numbers (meta)": tensor.is_meta}
    return next((kind for kind, so in kinds.items() if so), None)


def _shape(tensor: torch.Tensor) -> tuple[int, ...] | str:
    return "nested" if tensor.is_nested else tuple(tensor.shape)


def _unpickle(source: Path | str | IO[bytes]) -> Any:
    """What torch.save wrote. InputError says what the file is, if it is anything else."""
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of kinds of tensors that are refused anyway
            return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{name} could not be read: {error.strerror or error}") from None
    except Exception as error:  # torch's error depends on where the file is damaged
        text = str(error)
    if "TorchScript archive" in text:
        raise InputError(
            f"{name} is a TorchScript archive, which holds a program beside the weights: where you "
            "trust it, save torch.jit.load(path).state_dict() with torch.save, and name that file"
        )
    if refused := REFUSED.search(text):
        raise InputError(
            f"{name} holds an object of {refused[1]}, which is not read: load the file with the "
            "code that wrote it, save state_dict() alone with torch.save, and name that file"
        )
    # torch's own advice stands before and after the reason.
    reason = re.split(r"Please|Check the doc", text.rpartition("WeightsUnpickler error:")[2])[0]
    raise InputError(f"{name} is not a file of weights alone, or damaged: {one_line(reason)}")


def _without_wrappers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without `module.` and `_orig_mod.` before all their names."""
    for _ in range(4):  # DataParallel of a compiled model, or the other way round
        for prefix in ("module.", "_orig_mod."):
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


def _name(source: Path | str | IO[bytes]) -> Path | str:
    return source if isinstance(source, Path | str) else source.name
