"""Images on the device: normalised, and refused where memory is too small."""

import pytest
import torch

from richkd.base.errors import InputError
from richkd.data import resident
from richkd.data.resident import ResidentSet, normalise, to_input
from richkd.data.views import Preprocessing, Views

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def test_to_input_by_hand(split):
    result = to_input(split.images, Preprocessing(MEAN, STD), CPU)
    assert result.shape == (22, 3, 8, 8) and result.dtype == torch.float32
    pixel = split.images[7, 2, 5] / 255
    expected = [(p - m) / s for p, m, s in zip(pixel, MEAN, STD)]
    assert result[7, :, 2, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_normalise_works_in_place_and_sends_its_constants_once(split, monkeypatch):
    look = Preprocessing([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    levels = torch.from_numpy(split.images).permute(0, 3, 1, 2).float()
    expected = to_input(split.images, look, CPU)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("sent again"))
    found = normalise(levels, look)
    assert found is levels and torch.equal(found, expected)


def test_a_resident_set_knows_its_normalisation_and_serves_all_runs(data):
    assert data.preprocessing == Preprocessing(MEAN, STD)
    assert data.reader() is data and len(data) == 22


def test_images_that_do_not_fit_are_refused_before_they_are_padded(split, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 22 * 10 * 10 * 3 * 5 * 2 - 1)
    monkeypatch.setattr(resident.np, "pad", lambda *_: pytest.fail("padded"))
    with pytest.raises(InputError, match=r"22 images padded by views.pad 1 take 0.1 MB of memory"):
        ResidentSet(split, Preprocessing(MEAN, STD), Views(8, 8, 1, True), CPU)
