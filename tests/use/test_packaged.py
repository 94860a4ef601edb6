"""The cut inside an exported network is the pipeline's, on images of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd import models
from richkd.base.errors import InputError
from richkd.data.imagesets import cut_center
from richkd.data.resident import normalise
from richkd.data.views import Center, Preprocessing
from richkd.use.packaged import Cut, Packaged


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(2, 24),  # torch 2.14 resizes a tall image to a width of 1 with equal rows
    border=st.integers(0, 9),
    way=st.sampled_from(["bilinear", "bicubic"]),
    mode=st.sampled_from(["shortest", "squash"]),
)
def test_the_cut_is_the_pipelines(height, width, size, border, way, mode):
    center = Center(size + border, size, way, mode)
    torch.manual_seed(height + width)
    pixels = torch.rand(2, 3, height, width)
    expected = cut_center(pixels, center).clamp(0, 1)
    torch.testing.assert_close(Cut(center)(pixels), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "center",
    [
        Center(8, 8, resize_mode="longest"),
        Center(8, 8, interpolation="nearest"),
        Center(8, 12),
    ],
)
def test_a_cut_that_is_not_known_is_refused(center):
    with pytest.raises(InputError, match="export knows shortest and squash"):
        Cut(center)


@pytest.mark.parametrize("temperature", [0.5, None])
def test_levels_and_shares_of_them_are_the_same_pixels(temperature):
    """Also: the probabilities are those of the logits divided by the temperature."""
    torch.manual_seed(0)
    model = models.create("resnet8", 4).eval()
    look = Preprocessing([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    levels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    packaged = Packaged(model, look, temperature).eval()
    with torch.no_grad():
        logits, probabilities = packaged(levels)
        expected = model(normalise(levels.float(), look)).logits
        of_shares, _ = packaged(levels.float() / 255)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(of_shares, expected)
    torch.testing.assert_close(probabilities, (expected / (temperature or 1)).softmax(1))
