"""The views against a plain loop and against torchvision's own pad, crop and flip."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from richkd.dataset import Split
from richkd.engine import ResidentSet, to_input
from richkd.views import Views

quick = settings(max_examples=40, deadline=None, derandomize=True)
sets = st.builds(Views, st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.booleans())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(image, views, flip, dy, dx):
    """One view of one image (C, H, W), as it is written in words."""
    pad = views.pad
    padded = torch.zeros(len(image), views.height + 2 * pad, views.width + 2 * pad)
    padded[:, pad : pad + views.height, pad : pad + views.width] = image
    crop = padded[:, dy : dy + views.height, dx : dx + views.width]
    return crop.flip(-1) if flip else crop


def in_order(views):
    """(flip, dy, dx) of each view id from 0 on."""
    offsets = range(2 * views.pad + 1)
    flips = [False, True] if views.flip else [False]
    return [(flip, dy, dx) for flip in flips for dy in offsets for dx in offsets]


@quick
@given(sets, st.integers(0, 99))
def test_every_view_equals_a_plain_loop(views, seed):
    order = in_order(views)
    assert len(views) == len(order)
    images = torch.rand(len(views), 2, views.height, views.width, generator=generator(seed))
    expected = [plain(image, views, *view) for image, view in zip(images, order)]
    actual = views.apply(images, torch.arange(len(views)))
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=0)


@quick
@given(sets, st.integers(0, 99))
def test_crop_takes_any_image_any_number_of_times(views, seed):
    draw = generator(seed)
    images = torch.rand(3, 1, views.height, views.width, generator=draw)
    ids, view_ids = torch.randint(3, (12,), generator=draw), views.sample(12, draw)
    expected = [
        plain(images[i], views, *in_order(views)[v])
        for i, v in zip(ids.tolist(), view_ids.tolist())
    ]
    padded = F.pad(images, [views.pad] * 4)
    actual = views.crop(views.mirrored(padded), ids, view_ids)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=0)
    assert actual.is_contiguous(memory_format=torch.channels_last)


@quick
@given(sets)
def test_the_centre_is_the_image_as_it_is(views):
    images = torch.rand(2, 3, views.height, views.width)
    assert torch.equal(views.apply(images, torch.full((2,), views.center)), images)


def test_cifars_views_are_those_of_torchvision():
    views = Views(32, 32, pad=4, flip=True)
    assert len(views) == 162
    view_ids = views.sample(40, generator(0))
    images = torch.rand(40, 3, 32, 32, generator=generator(1))
    actual = views.apply(images, view_ids)
    for image, view, result in zip(images, view_ids, actual):
        flip, dy, dx = in_order(views)[view]
        expected = tv.crop(tv.pad(image, [4]), dy, dx, 32, 32)
        assert torch.equal(result, tv.hflip(expected) if flip else expected)


def test_the_border_is_black_before_normalising(split, data):
    ids, views = torch.arange(18), torch.arange(18)
    pixels = torch.from_numpy(split.images[:18]).permute(0, 3, 1, 2) / 255
    border = data.views.apply(pixels, views).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    expected = to_input(border, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], torch.device("cpu"))
    torch.testing.assert_close(data.batch(ids, views), expected, rtol=0, atol=1e-6)
    assert data.mirrored[0, 0, 0, 0].numpy() == pytest.approx([-0.5 / 0.2, -0.4 / 0.3, -0.3 / 0.4])


def test_resident_sets_keep_the_order_of_channels_and_axes():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 1, 2] = [51, 102, 255]  # row 1, column 2: red .2, green .4, blue 1
    data = ResidentSet(
        Split(images, np.zeros(1, np.int64)), [0.0] * 3, [1.0] * 3, Views(2, 3, 0, False),
        torch.device("cpu"),
    )  # fmt: skip
    batch = data.batch(torch.tensor([0]), torch.tensor([0]))
    assert batch.shape == (1, 3, 2, 3) and batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[0, :, 1, 2].tolist() == pytest.approx([0.2, 0.4, 1.0])
    assert batch.sum() == pytest.approx(1.6)


def test_sample_is_even_and_repeats_with_its_generator():
    views = Views(8, 8, pad=1, flip=True)
    drawn = views.sample(18_000, generator(0))
    assert drawn.dtype == torch.int64 and drawn.min() == 0 and drawn.max() == len(views) - 1
    assert chisquare(drawn.bincount()).pvalue > 1e-4
    assert torch.equal(drawn, views.sample(18_000, generator(0)))
    assert not torch.equal(drawn, views.sample(18_000, generator(1)))


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 3, 9, 8), (1, 3, 10, 10)])
def test_images_of_another_size_are_refused(shape):
    size = str(shape[2:]).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"images are {size}, the views are of \(8, 8\)"):
        Views(8, 8, pad=1, flip=False).apply(torch.zeros(shape), torch.tensor([0]))
