"""Figures and coloured cells."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from richkd.evaluate import plots


def test_pooled_bins_by_hand():
    curves = pd.DataFrame(
        {
            "lo": [0.0, 0.5, 0.5],
            "count": [2, 1, 3],
            "confidence": [0.4, 0.6, 0.8],
            "accuracy": [0.5, 1.0, 0.0],
        }
    )
    bins = plots.pooled(curves)
    np.testing.assert_array_equal(bins["count"], [2, 4])
    np.testing.assert_allclose(bins.confidence, [0.4, 0.75])
    np.testing.assert_allclose(bins.accuracy, [0.5, 0.25])


@pytest.mark.parametrize("colormap", ["cividis", "RdBu"])
def test_cells_are_legible(colormap):
    """WCAG AA: a contrast of 4.5 between text and background."""
    for value in np.linspace(0, 1, 50):
        background, text = re.findall("#[0-9a-f]+", plots.shade(value, 0, 1, colormap))
        light, dark = sorted((luminance(background), luminance(text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(color):
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(color)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])
