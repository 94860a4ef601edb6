"""The device, the images on it, and inference."""

import os

import pytest
import torch

from richkd import engine, models
from richkd.base.errors import InputError
from richkd.data.resident import ResidentSet, normalise, to_input
from richkd.data.views import Preprocessing, Views
from richkd.engine import accuracy, pick_device, predict

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


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


def test_to_input_by_hand(split):
    result = to_input(split.images, Preprocessing(MEAN, STD), CPU)
    assert result.shape == (22, 3, 8, 8) and result.dtype == torch.float32
    pixel = split.images[7, 2, 5] / 255
    expected = [(p - m) / s for p, m, s in zip(pixel, MEAN, STD)]
    assert result[7, :, 2, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_normalise_takes_numbers_or_tensors_and_works_in_place(split):
    levels = torch.from_numpy(split.images).permute(0, 3, 1, 2).float()
    expected = to_input(split.images, Preprocessing(MEAN, STD), CPU)
    for kind in (list, torch.tensor):
        pixels = levels.clone()
        found = normalise(pixels, kind(MEAN), kind(STD))
        assert found.data_ptr() == pixels.data_ptr() and torch.equal(found, expected)


def test_a_resident_set_knows_its_normalisation_and_serves_all_runs(data):
    assert data.preprocessing == Preprocessing(MEAN, STD)
    assert data.reader() is data and len(data) == 22


def test_images_that_do_not_fit_are_refused_before_they_are_padded(split, monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda device: 22 * 10 * 10 * 3 * 5 * 2 - 1)
    monkeypatch.setattr(engine.np, "pad", lambda *_: pytest.fail("padded"))
    with pytest.raises(InputError, match=r"22 images padded by views.pad 1 take 0.1 MB of memory"):
        ResidentSet(split, Preprocessing(MEAN, STD), Views(8, 8, 1, True), CPU)


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


def test_deterministic_kernels_are_asked_for_and_left_again():
    pick_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    pick_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
