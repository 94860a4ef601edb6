"""The views against a plain loop and against torchvision's own pad, crop and flip."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, ks_2samp, pearsonr
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop as Theirs
from torchvision.transforms import functional as tv

from richkd import params
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet, to_input
from richkd.data.views import Center, Preprocessing, RandomResizedCrop, Views

quick = settings(max_examples=40, deadline=None, derandomize=True)
sets = st.builds(Views, st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.booleans())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(image, views, flip, dy, dx):
    """One view of one image (C, H, W), step by step."""
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
    expected = to_input(border, data.preprocessing, torch.device("cpu"))
    torch.testing.assert_close(data.batch(ids, views), expected, rtol=0, atol=1e-6)
    assert data.mirrored[0, 0, 0, 0].numpy() == pytest.approx([-0.5 / 0.2, -0.4 / 0.3, -0.3 / 0.4])


def test_resident_sets_keep_the_order_of_channels_and_axes():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 1, 2] = [51, 102, 255]  # row 1, column 2: red .2, green .4, blue 1
    data = ResidentSet(
        Split(images, np.zeros(1, np.int64)),
        Preprocessing([0.0] * 3, [1.0] * 3),
        Views(2, 3, 0, False),
        torch.device("cpu"),
    )
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


# --- ImageNet's ---------------------------------------------------------------------------------

CROPS = RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3), flip=True)


def boxes(view_id, images, width, height, crops=CROPS):
    """(images, 5), the crops of as many images of one size."""
    return np.array([crops.box(view_id, image, width, height) for image in range(images)])


def figures(top, left, h, w, width, height):
    """Area, ratio and place of crops, each of about the same spread."""
    places = [start / np.maximum(room, 1) for start, room in ((top, height - h), (left, width - w))]
    return np.stack([h * w / (width * height), np.log(w / h), *places])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 200)])
def test_crops_are_distributed_as_torchvisions(width, height):
    count = 4000
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = [Theirs.get_params(image, CROPS.scale, CROPS.ratio) for _ in range(count)]
    theirs = figures(*np.array(theirs).T, width, height)
    ours = figures(*boxes(1, count, width, height)[:, :4].T, width, height)
    error = np.sqrt((ours.var(1) + theirs.var(1)) / count)
    assert (np.abs(ours.mean(1) - theirs.mean(1)) < 4 * error).all()
    # Without long tails the error of a variance is at most that of a normal distribution.
    assert ours.var(1) == pytest.approx(theirs.var(1), rel=4 * 2 / np.sqrt(count))
    assert all(ks_2samp(a, b).pvalue > 1e-3 for a, b in zip(ours, theirs))


def test_half_of_the_crops_are_mirrored_unless_none_shall_be():
    mirrored = boxes(1, 4000, 500, 375)[:, 4]
    assert binomtest(int(mirrored.sum()), 4000).pvalue > 1e-3
    never = RandomResizedCrop(224, CROPS.scale, CROPS.ratio, flip=False)
    assert not boxes(1, 100, 500, 375, never)[:, 4].any()


def test_a_crop_follows_from_seed_epoch_and_image_alone():
    first = boxes(7, 50, 300, 200)
    np.testing.assert_array_equal(first, [CROPS.box(7, image, 300, 200) for image in range(50)])
    assert CROPS.box(7, 49, 300, 200) == tuple(first[49])  # in any order
    assert len(np.unique(first[:, :4], axis=0)) == 50
    assert (first[:, :4] != boxes(8, 50, 300, 200)[:, :4]).any(1).all()


def test_neither_images_nor_epochs_in_a_row_are_related():
    """Areas, mirrors and places of an image, of the next one, and of the same in the next epoch."""
    seed = 3 * 1_000_003  # as richkd.train.fit makes it of the third seed
    now, later = (boxes(seed + epoch, 2001, 500, 375) for epoch in (0, 1))
    features = [
        np.column_stack([x[:, 2] * x[:, 3], x[:, 4], x[:, 0], x[:, 1]]) for x in (now, later)
    ]
    for a, b in ((features[0][:-1], features[0][1:]), features):
        assert all(pearsonr(a[:, i], b[:, i]).pvalue > 1e-3 for i in range(4))


def test_view_ids_are_the_generators_seed_whatever_it_gave():
    fresh, used = generator(2**32 * 1_000_003), generator(2**32 * 1_000_003)
    torch.rand(9, generator=used)
    drawn = CROPS.sample(5, fresh)
    assert drawn.dtype == torch.int64 and drawn.tolist() == [2**32 * 1_000_003] * 5
    assert torch.equal(drawn, CROPS.sample(5, used))
    CROPS.box(drawn[0].item(), 1_281_166, 500, 375)  # a seed and an image as large as they come


@pytest.mark.parametrize(("width", "height"), [(2000, 3), (3, 2000), (1, 1), (50, 1), (1, 50)])
def test_of_images_too_long_the_middle_is_taken_as_torchvision_does(width, height):
    crops = RandomResizedCrop(224, (0.9, 1.0), (3 / 4, 4 / 3), flip=False)
    expected = Theirs.get_params(torch.empty(3, height, width), crops.scale, crops.ratio)
    assert crops.box(0, 0, width, height) == (*expected, False)


ranges = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted)


@quick
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    ranges,
    st.tuples(st.floats(0.1, 1), st.floats(1, 9)),
    st.integers(0, 2**62),
    st.integers(0, 2**31),
)
def test_crops_lie_within_the_image(width, height, scale, ratio, view_id, image):
    crops = RandomResizedCrop(64, scale, ratio, flip=True)
    top, left, h, w, mirrored = crops.box(view_id, image, width, height)
    assert 0 <= top < top + h <= height and 0 <= left < left + w <= width
    assert isinstance(mirrored, bool)
    # Sides are rounded by half a pixel at most.
    assert (w - 0.5) / (h + 0.5) <= ratio[1] and (w + 0.5) / (h - 0.5) >= ratio[0]


def test_the_centre_has_no_box():
    with pytest.raises(ValueError):
        CROPS.box(CROPS.center, 0, 300, 200)


def test_what_tells_crops_from_others():
    assert CROPS.described == {
        "size": 224,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": True,
    }


def test_the_centre_of_each_augmentation():
    crops = params.ResizedCrops(
        augmentation="resized_crop",
        size=48,
        resize=56,
        scale=(0.1, 1.0),
        ratio=(0.5, 2.0),
        flip=True,
    )
    assert Center.of(crops) == (56, 48, "bilinear", "shortest", 0)
    assert Center.of(params.PaddedCrops(augmentation="padded_crop", pad=4, flip=True)) is None
