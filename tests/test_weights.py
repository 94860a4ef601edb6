"""Saved models come back bit for bit; anything else on disk is refused by name."""

import json
import platform
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from richkd import models, weights
from richkd.base.errors import InputError

CPU = torch.device("cpu")
RECORD = {"kind": "classifier", "arch": "resnet8", "num_classes": 4}


@pytest.fixture
def saved(tmp_path):
    model = models.create("resnet8", 4)
    model(torch.rand(4, 3, 8, 8))  # moves the running statistics
    path = tmp_path / "model" / "seed0"
    weights.save(path, model.state_dict(), RECORD)
    return model, path


def test_tensors_in_any_memory_format_are_saved(tmp_path):
    tensor = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    weights.save(tmp_path / "x", {"a": tensor, "b": tensor[0, 0].T}, {})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"], tensor) and torch.equal(loaded["b"], tensor[0, 0].T)


def test_weights_of_another_model_are_refused_by_parameter_and_shapes(saved):
    _, path = saved
    with pytest.raises(InputError) as caught:
        weights.load_into(models.create("resnet8x4", 4), f"{path}.safetensors")
    assert str(caught.value) == (
        f"{path}.safetensors is of another model: conv1.weight is (16, 3, 3, 3) there, "
        "(32, 3, 3, 3) here"
    )


def test_a_path_is_named_in_full_and_an_open_file_by_its_name(saved, tmp_path):
    _, path = saved
    file = path.with_suffix(".safetensors")
    with pytest.raises(InputError, match=f"{file} is of another model"):
        weights.load_into(models.create("resnet8", 10), file)
    (tmp_path / "x.pth").write_bytes(b"text")
    with (tmp_path / "x.pth").open("rb") as opened, pytest.raises(InputError, match="x.pth is no"):
        weights.read_tensors(opened)


def test_another_number_of_classes_is_refused(saved):
    _, path = saved
    with pytest.raises(InputError, match=r"fc.weight is \(4, 64\) there, \(10, 64\) here"):
        weights.load_into(models.create("resnet8", 10), f"{path}.safetensors")


def test_missing_and_unknown_parameters_are_refused_by_name(saved):
    _, path = saved
    with pytest.raises(InputError, match=r"layer1.1.conv1.weight is missing there, \(16, 16"):
        weights.load_into(models.create("resnet14", 4), f"{path}.safetensors")
    tensors = load_file(f"{path}.safetensors")
    save_file(tensors | {"extra": torch.zeros(2)}, f"{path}.safetensors")
    with pytest.raises(InputError, match=r"extra is \(2,\) there, unknown here"):
        weights.load_into(models.create("resnet8", 4), f"{path}.safetensors")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(saved, share):
    _, path = saved
    file = path.with_suffix(".safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"{file} is damaged: "):
        weights.load_into(models.create("resnet8", 4), f"{path}.safetensors")


def test_the_record_says_what_the_weights_are(saved):
    _, path = saved
    record = json.loads(path.with_suffix(".json").read_text())
    assert record == {"saved_together": ["seed0"], **RECORD}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_model_is_not_saved(saved, value):
    model, path = saved
    before = path.with_suffix(".safetensors").read_bytes()
    with torch.no_grad():
        model.fc.bias[1] = value
    with pytest.raises(InputError, match="seed0 is not saved: fc.bias holds NaN or infinity"):
        weights.save(path, model.state_dict(), RECORD)
    assert path.with_suffix(".safetensors").read_bytes() == before


# --- what others have saved ---------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_warnings():
    """Torch's warnings are not for the users of a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def load(state, path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state, path, **more)
    model = models.create("resnet8", 4)
    weights.load_into(model, path)
    return model.state_dict()


def equal(found, expected):
    return all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_load_wherever_they_are_and_whatever_wrapped_the_model(
    saved, tmp_path, key, prefix
):
    state = saved[0].state_dict()
    named = {f"{prefix}{name}": x for name, x in state.items()}
    content = {"epoch": 3, "optimizer": {"lr": 0.1}, key: named} if key else named
    assert equal(load(content, tmp_path / "x.pth"), state)
    save_file(named, tmp_path / "x.safetensors")
    assert equal(weights.read_tensors(tmp_path / "x.safetensors"), state)


def test_weights_from_before_torch_0_4_1_have_no_count_of_batches(saved, tmp_path):
    state = saved[0].state_dict()
    old = {k: x for k, x in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert equal(load({"model": old}, tmp_path / "x.pth"), old)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(saved, tmp_path, dtype):
    state = {name: x.to(dtype) for name, x in saved[0].state_dict().items()}
    found = load(state, tmp_path / "x.pth")
    assert found["fc.weight"].dtype == torch.float32
    assert equal(found, {name: x.float() for name, x in state.items()})


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_public_resnet56_loads_however_it_is_wrapped(shared, tmp_path, key, prefix):
    path = shared / "checkpoints/cifar100_resnet56.pth"
    state = weights.read_tensors(path)
    old = {name: x.half() for name, x in state.items() if not name.endswith("batches_tracked")}
    assert len(old) < len(state)
    named = {f"{prefix}{name}": x for name, x in old.items()}
    torch.save({"epoch": 200, key: named}, tmp_path / "x.pth")
    model = models.create("resnet56", 100)
    weights.load_into(model, tmp_path / "x.pth")
    assert equal(model.state_dict(), {name: x.float() for name, x in old.items()})


def quantised(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def nested(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(tensor))


ODD = {
    "integer": (lambda x: x.long(), "fc.weight is int64, must be float32"),
    "complex": (lambda x: x.to(torch.complex64), "fc.weight is complex64, must be float32"),
    "bool": (lambda x: x > 0, "fc.weight is bool, must be float32"),
    "sparse": (lambda x: x.to_sparse(), "fc.weight is sparse, must be a dense tensor"),
    "quantised": (quantised, "fc.weight is quantised, must be a dense tensor"),
    "nested": (nested, "fc.weight is nested there"),
    "meta": (lambda x: x.to("meta"), "fc.weight is without numbers .meta., must be a dense"),
    "NaN": (lambda x: x * float("nan"), "fc.weight holds NaN or infinity"),
    "inf": (lambda x: x.half() / 0, "fc.weight holds NaN or infinity"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_dense_finite_numbers_are_refused_by_name(saved, tmp_path, kind):
    change, said = ODD[kind]
    state = saved[0].state_dict()
    state["fc.weight"] = change(state["fc.weight"])
    with pytest.raises(InputError, match=f"x.pth.*{said}") as caught:
        load(state, tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


class Args:
    """What training scripts save beside the weights."""


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("beside", ["namespace", "own class", "whole model", "numpy", "command"])
def test_a_refused_object_is_named_and_the_way_out(saved, tmp_path, beside, new, evil):
    import numpy as np

    model = saved[0]
    content, name = {
        "namespace": ({"model": model.state_dict(), "opt": Namespace()}, "argparse.Namespace"),
        "own class": ({"model": model.state_dict(), "opt": Args()}, f"{__name__}.Args"),
        "whole model": (model, type(model).__module__ + "." + type(model).__name__),
        "numpy": ({"x": np.float64(1)}, "numpy._core.multiarray.scalar"),
        "command": ({"x": evil}, "posix.system"),
    }[beside]
    with pytest.raises(InputError) as caught:
        load(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    assert str(caught.value) == (
        f"{tmp_path}/x.pth holds an object of {name}, which is not read: load the file with the "
        "code that wrote it, save state_dict() alone with torch.save, and name that file"
    )


def test_a_damaged_pickle_is_one_line_without_advice(saved, tmp_path):
    torch.save({"model": saved[0].state_dict()}, path := tmp_path / "x.pth")
    whole = path.read_bytes()
    start = whole.index(b"conv1")
    for position in range(start - 40, start + 200, 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            weights.read_tensors(path)
        except InputError as error:
            text = str(error)
            assert text.startswith(f"{path} ") and len(text.splitlines()) == 1
            assert "weights_only" not in text and "Re-running" not in text


def test_torchscript_is_called_so(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match="ViT-B-32.pt is a TorchScript archive") as caught:
        weights.read_tensors(path)
    assert "torch.jit.load(path).state_dict()" in str(caught.value)


def test_a_dict_without_weights_says_where_they_may_be(tmp_path):
    with pytest.raises(InputError, match="one of state_dict, model, net, model_state_dict"):
        load({"weights": {"a": torch.ones(1)}}, tmp_path / "x.pth")


def test_provenance_names_versions_and_device():
    provenance = weights.provenance(CPU)
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["device"].startswith("cpu") and provenance["threads"] >= 1
    json.dumps(provenance)


def test_a_record_names_the_processor(monkeypatch):
    assert weights.provenance(CPU)["device"] == f"cpu ({weights.processor()})"
    monkeypatch.setattr(Path, "exists", lambda path: False)  # a system without /proc/cpuinfo
    assert weights.provenance(CPU)["device"] == f"cpu ({platform.machine()})"
