"""Figures and coloured cells."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from richkd.evaluate import plots


def test_pooled_bins_by_hand() -> None:
    curves = pd.DataFrame(
        {
            "lo": [0.0, 0.5, 0.5],
            "count": [2, 1, 3],
            "confidence": [0.4, 0.6, 0.8],
            "accuracy": [0.5, 1.0, 0.0],
        }
    )
    bins = plots.pool_bins(curves)
    np.testing.assert_array_equal(bins["count"], [2, 4])
    np.testing.assert_allclose(bins.confidence, [0.4, 0.75])
    np.testing.assert_allclose(bins.accuracy, [0.5, 0.25])


@pytest.mark.parametrize("colormap", ["cividis", "RdBu"])
def test_cells_are_legible(colormap: str) -> None:
    """WCAG AA: a contrast of 4.5 between text and background."""
    for value in np.linspace(0, 1, 50):
        background, text = re.findall("#[0-9a-f]+", plots.shade(value, 0, 1, colormap))
        light, dark = sorted((luminance(background), luminance(text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(color: str) -> float:
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(color)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


# --- colours ------------------------------------------------------------------------------------


def test_models_keep_their_colours_and_variants_take_them_in_order() -> None:
    color = plots.colors(["teacher", "clip", "fused", "ce", "Z", "a", "Z"])
    assert color == plots.FIXED_COLORS | {"Z": "#000000", "a": "#56b4e9"}
    assert plots.colors([]) == plots.FIXED_COLORS


def test_colours_of_sixteen_models_are_distinct() -> None:
    fixed = list(plots.FIXED_COLORS)
    variants = [f"v{i}" for i in range(13)]
    color = plots.colors([*fixed, *variants])
    assert len({color[name] for name in [*fixed, *variants[:12]]}) == 16
    assert color["v12"] == color["v0"]  # the cycle begins again


@pytest.mark.parametrize("models, height", [(4, 600), (10, 600), (20, 1200)])
def test_overview_has_room_for_every_model(models: int, height: int) -> None:
    names = [f"v{i}" for i in range(models)]
    empty = pd.DataFrame(columns=["alpha", "accuracy"])
    png = plots.overview(
        empty, 0.5, {}, {name: [0.5, 0.6] for name in names}, {name: name for name in names}
    )
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (800, height)


def test_every_loss_term_is_drawn_in_its_colour() -> None:
    curves = pd.DataFrame(
        {
            "epoch": [1, 2],
            "seed": 0,
            "validation_accuracy": np.nan,
            "odd": [2.0, 1.0],
            "x": [3.0, 1.0],
        }
    )
    svg = plots.training(curves, "#123456", {"odd": "#abcdef", "x": "#fedcba"}).decode()
    assert "stroke: #abcdef" in svg and "stroke: #fedcba" in svg and "#123456" not in svg
