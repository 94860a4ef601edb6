"""Figures and coloured cells."""

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
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
        empty, empty, {name: [0.5, 0.6] for name in names}, {name: name for name in names}
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
    svg = plots.training(curves, "#123456", {"odd": "#abcdef", "x": "#fedcba"})
    assert "stroke: #abcdef" in svg and "stroke: #fedcba" in svg and "#123456" not in svg


# --- dark ---------------------------------------------------------------------------------------


def test_colours_are_seen_on_the_dark_page() -> None:
    """WCAG: a contrast of 3 for what is drawn, told apart; the grid may be fainter."""
    drawn = [*plots.FIXED_COLORS.values(), *plots.COLOR_CYCLE, *plots.ALIGN_COLORS.values()]
    dark = {color: plots.DARK.get(color, color) for color in drawn}
    page = luminance(plots.DARK["#ffffff"])
    assert min((luminance(color) + 0.05) / (page + 0.05) for color in dark.values()) >= 3
    assert len(set(dark.values())) == len(dark)


# --- the fused teacher --------------------------------------------------------------------------


def fused_teacher() -> tuple[pd.DataFrame, pd.DataFrame]:
    grid = {"alpha": [0.0, 0.5, 1.0], "accuracy": [0.6, 0.7, 0.5], "nll_tempered": [0.9, 0.8, 1.0]}
    curve = pd.concat([pd.DataFrame(grid).assign(align=name) for name in ("none", "temperature")])
    used = {"align": "none", "chosen": "given", "alpha": 0.3, "shipped": True}
    auto = {"align": "none", "chosen": "auto", "alpha": 0.5, "shipped": False}
    choices = pd.DataFrame([used, auto | {"alpha_low": 0.4, "alpha_high": 0.6}])
    return curve, choices.assign(accuracy=0.7, nll_tempered=0.8)


def test_the_fused_teacher_has_a_line_for_each_alignment() -> None:
    svg = plots.fusion(*fused_teacher())
    for name in ("none", "temperature"):
        assert svg.count(f"stroke: {plots.ALIGN_COLORS[name]}; stroke-width: 1.2") >= 2
    assert plots.ALIGN_COLORS["standardize"] not in svg and ">in use</text>" in svg
    assert plots.fusion(*fused_teacher()) == svg


def test_no_line_crosses_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text stands outside of the axes, where no line is drawn."""
    figures: list[Figure] = []
    save = plots._save

    def collect(figure: Figure, *how: Any, **options: Any) -> bytes:
        figures.append(figure)
        return save(figure, *how, **options)

    monkeypatch.setattr(plots, "_save", collect)
    curve, choices = fused_teacher()
    losses = pd.DataFrame({"epoch": [1, 2], "seed": 0, "validation_accuracy": 0.5, "x": [1.0, 2]})
    plots.fusion(curve, choices)
    plots.training(losses, "#123456", {"x": "#abcdef"})
    plots.overview(curve, choices, {"x": [0.5, 0.6]}, {"x": "x"})
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        for axes in figure.axes:
            inside = axes.get_window_extent()
            texts: list[Any] = [*axes.texts, axes.title, *filter(None, [axes.get_legend()])]
            boxes = [text.get_window_extent(renderer) for text in texts]
            assert not any(box.overlaps(inside) for box in boxes)
            assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert len(figures) == 3 and figures[0].axes[0].get_legend()
