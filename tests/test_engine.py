"""The device, and running a model on images."""

import os

import numpy as np
import pytest
import torch

from richkd import engine, models
from richkd.base.errors import InputError
from richkd.engine import accuracy, pick_device, predict

CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    return models.create("resnet8", 4)


# --- inference ----------------------------------------------------------------------------------


def test_predict_changes_nothing_and_restores_the_mode():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training_ in (True, False):
        model.train(training_)
        predict(model, torch.rand(9, 3, 8, 8), 4)
        assert {module.training for module in model.modules()} == {training_}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_predict_does_not_depend_on_the_batches():
    model, images = network(), torch.rand(9, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(images)
    for batch_size in (1, 4, 9, 100):
        logits, features = predict(model, images, batch_size)
        torch.testing.assert_close(logits, expected.logits)
        torch.testing.assert_close(features, expected.features)


def test_predict_gives_float32_in_bf16_close_to_the_exact():
    model, images = network(), torch.rand(6, 3, 8, 8)
    exact, rough = predict(model, images, 6), predict(model, images, 6, "bf16")
    for a, b in zip(exact, rough):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


def test_accuracy_by_hand():
    logits = torch.tensor([[0.0, 1, 2], [0, 2, 1], [2, 1, 0], [0, 2, 1]])
    labels = torch.tensor([2, 2, 2, 0])
    assert [accuracy(logits, labels, top) for top in (1, 2, 3)] == [0.25, 0.5, 1.0]


def test_a_network_that_answers_nan_is_never_right():
    logits = torch.full((4, 3), torch.nan)
    assert accuracy(logits, torch.tensor([0, 1, 2, 0]), 3) == 0
    logits[:, 1] = 1.0  # one NaN is ahead of it, and may be more
    assert accuracy(logits, torch.tensor([1, 1, 1, 1])) == 0


def test_models_side_by_side_answer_as_each_alone():
    made = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        made.append(models.create("resnet8", 4).eval())
    images, before = torch.randn(23, 3, 8, 8), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for few in (images, images[:1], images[:0]):
            found = engine.predict_side_by_side(made, few, 5)
            assert found.shape == (3, len(few), 4)
            for model, logits in zip(made, found):
                assert torch.equal(logits, predict(model, few, 5)[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_free_memory_is_what_the_machine_has_left():
    assert 2**20 < engine.free_memory(CPU) < 2**50


# --- devices ------------------------------------------------------------------------------------


def test_cpu_is_the_cpu():
    assert pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_one_is_refused():
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="runtime.device is 'cuda': no CUDA device here, use auto"):
        pick_device("cuda")


def test_running_out_of_memory_says_what_to_lower():
    with (
        pytest.raises(InputError, match="out of memory: lower a.batch_size .no room left."),
        engine.out_of_memory("a.batch_size"),
    ):
        raise torch.OutOfMemoryError("no room left")


@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.empty(10**13),
        lambda: torch.empty(10**18, 10**3),
        lambda: np.empty(10**14),
    ],
)
def test_running_out_of_memory_on_the_cpu_says_what_to_lower(take):
    with (
        pytest.raises(InputError, match="^out of memory: lower a.batch_size [(][^\n]*[)]$"),
        engine.out_of_memory("a.batch_size"),
    ):
        take()


def test_other_errors_are_not_called_a_want_of_memory():
    with pytest.raises(RuntimeError, match="shape"), engine.out_of_memory("a.batch_size"):
        torch.zeros(2).view(3)


def test_deterministic_kernels_are_asked_for_and_left_again():
    pick_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    pick_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
