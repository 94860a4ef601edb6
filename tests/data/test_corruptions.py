"""Corruptions against what the benchmark's own generator gives (golden/corruptions.npz).

"Golden" is what that generator gave. Deterministic corruptions equal golden within one grey level
on 99 % of the values. So do the random ones in REPLAYED, if they get the draws that golden was made
from: numpy's RandomState with seed severity - 1, spent image by image.

Another library drew golden's impulse noise. Its expectation, the mean over DRAWS draws of the same
16 images, is compared with golden at every severity: the mean absolute change from clean, the mean
and the standard deviation of an image, each averaged over the 16 images, differ by at most 10 % of
golden's. The replayed corruptions need not pass this test, because golden is a single draw, which
can lie far from its expectation: spatter at severity 4, equal to ours pixel by pixel, changes the
images by 12 % less than on average, and one standard deviation is 10 %.

Frost with the photographs equals golden given its draws. Frost with textures is compared with the
expectation of frost with the photographs, FROST: the three figures differ by at most 1.5 %.

For every random corruption the draws that users get are compared with golden, image by image: each
of the three figures lies within 4 standard deviations of our draws.

Golden has CIFAR's constants. ImageNet's constants use the same functions; the branches that only
they reach are checked against their definitions, at 64x64 to be quick.
"""

import functools
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from richkd.data.corrupted import frost_photographs
from richkd.data.corruptions import (
    BENCHMARK,
    CONSTANTS,
    CORRUPTIONS,
    EXTRA,
    blur,
    corrupt,
    defocus_blur,
    glass_blur,
)

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "corruptions.npz"
PHOTOGRAPHS = platformdirs.user_cache_path("richkd") / "frost"
SEVERITIES = (1, 2, 3, 4, 5)
ALL = BENCHMARK + EXTRA
DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
RANDOM = tuple(name for name in ALL if name not in DETERMINISTIC)
DRAWS = {"frost": 1000, "impulse_noise": 100}  # the mean change then stays within 0.6 % over seeds
# Frost with the photographs at severities 1 to 5: mean change, mean and sd, over 600 draws.
FROST = [
    (29.84, 154.52, 49.00),
    (44.05, 168.73, 47.46),
    (48.55, 173.18, 43.76),
    (43.84, 168.10, 42.52),
    (42.45, 164.97, 39.15),
]


@functools.cache
def golden():
    if not GOLDEN.exists():
        pytest.skip("shared/golden/corruptions.npz is absent: no comparison with the benchmark")
    with np.load(GOLDEN) as file:
        return dict(file)


def images(n, height=32, width=32):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


@functools.cache
def photographs():
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"{PHOTOGRAPHS} is absent: no comparison with the benchmark's photographs")
    return frost_photographs(str(PHOTOGRAPHS))


def ice(*shapes):
    """Stand-ins for the photographs."""
    return [images(1, height, width)[0] for height, width in shapes]


def equals_golden(name, severity, photographs=None):
    ours = corrupt(golden()["clean"], name, severity, 0, "cifar", photographs).astype(int)
    return (np.abs(ours - golden()[name][severity - 1]) <= 1).mean() >= 0.99


@functools.cache
def statistics(name, severity, draws):
    """Mean absolute change, mean and sd of each image: golden (16, 3), ours (draws, 16, 3)."""
    clean, theirs = golden()["clean"], golden()[name][severity - 1]
    ours = corrupt(np.tile(clean, (draws, 1, 1, 1)), name, severity, seed=0)

    def measure(x):
        x, axes = x.astype(np.float32), (-3, -2, -1)
        return np.stack([np.abs(x - clean).mean(axes), x.mean(axes), x.std(axes)], -1)

    return measure(theirs), np.stack([measure(x) for x in np.split(ours, draws)])


# Golden's draws, in the shapes that our corruptions ask for. r: the RandomState that golden used.


def plain_draws(r):
    return r


def noise_draws(r):
    return SimpleNamespace(standard_normal=lambda shape, dtype: r.standard_normal(shape))


def glass_draws(r):
    """From the last pixel to the first, x before y."""

    def integers(low, high, shape):
        n, passes, _, height, width = shape
        draws = r.randint(low, high, (n, passes, height, width, 2))
        return draws[:, :, ::-1, ::-1, ::-1].transpose(0, 1, 4, 2, 3)

    return SimpleNamespace(integers=integers)


def snow_draws(r):
    """Flakes and angle of each image in turn."""
    draws = [(r.standard_normal((32, 32, 1)), r.uniform(-135, -45)) for _ in range(16)]
    flakes, angles = map(np.array, zip(*draws, strict=True))
    flake_rng = SimpleNamespace(standard_normal=lambda shape, dtype: flakes)
    angle_rng = SimpleNamespace(uniform=lambda low, high, n: angles)
    return SimpleNamespace(spawn=lambda count: (flake_rng, angle_rng))


def fog_draws(r):
    """Octave by octave of each image in turn: centres of squares, then middles of their sides."""
    noise = np.empty((16, 32, 32))
    for image in noise:
        for step in (32, 16, 8, 4, 2):
            corner, middle = slice(0, None, step), slice(step // 2, None, step)
            for part in (middle, middle), (corner, middle), (middle, corner):
                image[part] = r.uniform(-1, 1, image[part].shape)
    return SimpleNamespace(uniform=lambda low, high, shape: noise)


def elastic_draws(r):
    """Corners, then displacements of each image in turn, x before y."""
    draws = [(r.uniform(-1, 1, (3, 2)), r.uniform(-1, 1, (2, 32, 32))) for _ in range(16)]
    corners, shift = map(np.array, zip(*draws, strict=True))
    affine_rng = SimpleNamespace(uniform=lambda low, high, shape: high * corners[..., ::-1])
    displacement_rng = SimpleNamespace(uniform=lambda low, high, shape: shift[:, ::-1])
    return SimpleNamespace(spawn=lambda count: (affine_rng, displacement_rng))


def frost_draws(r):
    """Photograph, row and column of each image in turn."""
    sides = [[side // 5 for side in photograph.shape[:2]] for photograph in photographs()]
    draws = []
    for _ in range(16):
        choice = r.randint(5)
        height, width = sides[choice]
        draws.append((choice, r.randint(height - 32), r.randint(width - 32)))
    return SimpleNamespace(spawn=lambda count: map(given_integers, zip(*draws, strict=True)))


def given_integers(draws):
    return SimpleNamespace(integers=lambda *_, **__: np.array(draws))


REPLAYED = {
    "gaussian_noise": noise_draws,
    "shot_noise": plain_draws,
    "glass_blur": glass_draws,
    "motion_blur": plain_draws,
    "snow": snow_draws,
    "fog": fog_draws,
    "elastic_transform": elastic_draws,
    "speckle_noise": noise_draws,
    "spatter": plain_draws,
}


def test_the_names_are_those_of_params_in_the_same_order():
    assert len(BENCHMARK) == 15 and len(EXTRA) == 4
    assert set(ALL) <= set(golden())
    assert set(RANDOM) == {*REPLAYED, *DRAWS}
    assert tuple(CORRUPTIONS) == ALL
    assert all(function.__name__ == name for name, function in CORRUPTIONS.items())
    for constants in CONSTANTS.values():
        assert tuple(constants) == ALL and {len(values) for values in constants.values()} == {5}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_equals_golden(name, severity):
    assert equals_golden(name, severity)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", REPLAYED)
def test_random_equals_golden_given_its_draws(name, severity, monkeypatch):
    draws = REPLAYED[name](np.random.RandomState(severity - 1))
    monkeypatch.setattr(np.random, "default_rng", lambda key: draws)
    assert equals_golden(name, severity)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_equals_golden_given_its_draws_and_photographs(severity, monkeypatch):
    draws = frost_draws(np.random.RandomState(severity - 1))
    monkeypatch.setattr(np.random, "default_rng", lambda key: draws)
    assert equals_golden("frost", severity, photographs())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_random_matches_golden_statistics(severity):
    theirs, ours = statistics("impulse_noise", severity, DRAWS["impulse_noise"])
    assert ours.mean((0, 1)) == pytest.approx(theirs.mean(0), rel=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_textures_match_the_photographs_statistics(severity):
    _, ours = statistics("frost", severity, DRAWS["frost"])
    assert ours.mean((0, 1)) == pytest.approx(FROST[severity - 1], rel=0.015)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_recorded_figures_are_those_of_the_photographs(severity):
    clean = np.tile(golden()["clean"], (100, 1, 1, 1))
    frosted = corrupt(clean, "frost", severity, 1, "cifar", photographs()).astype(np.float32)
    sd = frosted.std((1, 2, 3)).mean()
    found = np.abs(frosted - clean).mean(), frosted.mean(), sd
    assert found == pytest.approx(FROST[severity - 1], rel=0.015)


@pytest.mark.parametrize("constants, step", [("cifar", 5), ("imagenet", 1)])
def test_frost_is_cut_from_every_part_of_every_photograph(constants, step):
    """Over black images frost is the photographs' pieces, a fifth of their size for CIFAR."""
    taken = ice((20 * step + 1, 22 * step), (18 * step, 19 * step + step // 2))
    clean = np.zeros((1000, 16, 16, 3), np.uint8)
    result = corrupt(clean, "frost", 1, 0, constants, taken)
    weight = CONSTANTS[constants]["frost"][0][1]
    pieces = {}
    for i, photograph in enumerate(taken):
        small = photograph[step // 2 :: step, step // 2 :: step].astype(np.float32)
        for top, left in np.ndindex(small.shape[0] - 16, small.shape[1] - 16):
            piece = weight * small[top : top + 16, left : left + 16]
            pieces[piece.astype(np.uint8).tobytes()] = i, top, left
    found = {pieces[image.tobytes()] for image in result}
    assert found == set(pieces.values())


@pytest.mark.parametrize("constants", CONSTANTS)
def test_frosted_images_do_not_depend_on_those_that_follow(constants):
    clean, taken = images(6), ice((200, 240), (300, 180))
    whole = corrupt(clean, "frost", 3, 7, constants, taken)
    np.testing.assert_array_equal(whole[:2], corrupt(clean[:2], "frost", 3, 7, constants, taken))
    assert not np.array_equal(whole, corrupt(clean, "frost", 3, 8, constants, taken))


def test_textures_for_imagenet_are_about_as_smooth_as_the_whole_photographs():
    """Correlation of pixels 1, 2, 4 and 8 apart; without smoothing pixels 1 apart have 0.5."""
    ice = corrupt(np.zeros((100, 224, 224, 3), np.uint8), "frost", 5, 0, "imagenet").mean(3)
    ice = (ice - ice.mean((1, 2), keepdims=True)) / ice.std((1, 2), keepdims=True)
    found = [(ice[:, :, k:] * ice[:, :, :-k]).mean() for k in (1, 2, 4, 8)]
    photographs = [0.77, 0.57, 0.45, 0.36]
    assert found[:3] == pytest.approx(photographs[:3], abs=0.1)
    assert found[3] == pytest.approx(photographs[3], abs=0.2)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_golden_could_be_a_draw_of_ours(name, severity):
    theirs, ours = statistics(name, severity, DRAWS.get(name, 40))
    assert (np.abs(theirs - ours.mean(0)) <= 4 * ours.std(0)).all()


@pytest.mark.parametrize("name", ALL)
def test_same_arguments_same_result_and_input_untouched(name):
    clean = images(5)
    before = clean.copy()
    first = corrupt(clean, name, 5, seed=3)
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(first, corrupt(clean, name, 5, seed=3))
    assert not np.shares_memory(first, clean)


@pytest.mark.parametrize("name", ALL)
def test_seed_changes_the_random_ones_only(name):
    same = np.array_equal(corrupt(images(2), name, 3, seed=0), corrupt(images(2), name, 3, seed=1))
    assert same == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", RANDOM)
def test_images_of_a_batch_are_corrupted_independently(name):
    twice = corrupt(np.repeat(images(1), 2, 0), name, 4, seed=0)
    assert not np.array_equal(twice[0], twice[1])


@pytest.mark.parametrize("name", ALL)
def test_images_do_not_depend_on_those_that_follow(name):
    clean = images(6)
    np.testing.assert_array_equal(corrupt(clean, name, 3, 7)[:2], corrupt(clean[:2], name, 3, 7))


@pytest.mark.parametrize("name", ["snow", "contrast"])
def test_chunks_join(name):
    clean = images(260)
    whole = corrupt(clean, name, 2, 0)
    np.testing.assert_array_equal(whole[:257], corrupt(clean[:257], name, 2, 0))
    assert not np.array_equal(whole[256:], corrupt(clean[:4], name, 2, 0))


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("name", ALL)
def test_small_images(name, n, constants):
    clean = images(n, 16, 16)
    result = corrupt(clean, name, 5, 0, constants)
    assert result.shape == clean.shape and result.dtype == np.uint8
    assert n == 0 or not np.array_equal(result, clean)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(ALL),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**40),
    constants=st.sampled_from(sorted(CONSTANTS)),
    n=st.integers(0, 3),
    height=st.integers(16, 45),
    width=st.integers(16, 45),
    level=st.sampled_from([None, 0, 1, 255]),
)
def test_any_size_and_content(name, severity, seed, constants, n, height, width, level):
    clean = (
        images(n, height, width)
        if level is None
        else np.full((n, height, width, 3), level, np.uint8)
    )
    with np.errstate(all="raise", under="ignore"):
        result = corrupt(clean, name, severity, seed, constants)
    assert result.shape == clean.shape and result.dtype == np.uint8


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize(
    "name", ["defocus_blur", "zoom_blur", "glass_blur", "elastic_transform", "motion_blur"]
)
def test_blurs_and_warps_keep_a_flat_image(name, constants):
    flat = np.full((2, 20, 33, 3), 77, np.uint8)
    assert np.abs(corrupt(flat, name, 5, 0, constants).astype(int) - 77).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ALL)
def test_imagenet(name, severity):
    clean = images(3, 64, 64)
    before = clean.copy()
    result = corrupt(clean, name, severity, 7, "imagenet")
    assert result.shape == clean.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(result, corrupt(clean, name, severity, 7, "imagenet"))
    np.testing.assert_array_equal(result[:2], corrupt(clean[:2], name, severity, 7, "imagenet"))


def test_imagenet_chunks_join():
    clean = images(6, 224, 224)
    whole = corrupt(clean, "zoom_blur", 3, 0, "imagenet")
    np.testing.assert_array_equal(whole[5:], corrupt(clean[5:], "zoom_blur", 3, 0, "imagenet"))


@pytest.mark.parametrize(
    "name",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "speckle_noise",
        "brightness",
        "contrast",
        "gaussian_blur",
    ],
)
def test_imagenet_severity_grows_the_change(name):
    clean = images(4, 64, 64)
    change = [
        np.abs(corrupt(clean, name, severity, 0, "imagenet").astype(int) - clean).mean()
        for severity in SEVERITIES
    ]
    assert (np.diff(change) > 0).all()


def test_imagenet_gaussian_noise():
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 1, 0, "imagenet").std() == pytest.approx(
        0.08 * 255, rel=0.02
    )


def test_imagenet_contrast():
    clean = np.zeros((1, 64, 64, 3), np.uint8)
    clean[:, :32] = 200
    expected = np.where(clean == 200, 140, 60)  # 100 ± 0.4 · 100
    np.testing.assert_array_equal(corrupt(clean, "contrast", 1, 0, "imagenet"), expected)


def test_imagenet_brightness():
    clean = np.tile(np.array([100, 50, 0], np.uint8), (1, 64, 64, 1))
    result = corrupt(clean, "brightness", 1, 0, "imagenet")
    np.testing.assert_array_equal(result, np.broadcast_to([125, 62, 0], clean.shape))


def test_imagenet_fog():
    """At 64 the image shows the whole fractal, its lowest point 0 and its highest 1."""
    fogged = corrupt(np.full((1, 64, 64, 3), 200, np.uint8), "fog", 1, 0, "imagenet")
    assert fogged.min() == int(200 * 200 / (200 + 1.5 * 255)) and fogged.max() in (199, 200)


def test_imagenet_jpeg_compression():
    clean, buffer = images(1, 64, 50), io.BytesIO()
    Image.fromarray(clean[0]).save(buffer, "JPEG", quality=25)
    result = corrupt(clean, "jpeg_compression", 1, 0, "imagenet")
    np.testing.assert_array_equal(result[0], np.asarray(Image.open(buffer)))


def test_imagenet_pixelate():
    clean, box = images(1, 64, 50), Image.Resampling.BOX
    expected = Image.fromarray(clean[0]).resize((30, 38), box).resize((50, 64), box)
    result = corrupt(clean, "pixelate", 1, 0, "imagenet")
    np.testing.assert_array_equal(result[0], np.asarray(expected))


@pytest.mark.parametrize(
    "severity, last, step", [(1, 111, 1), (2, 115, 1), (3, 120, 2), (4, 124, 2), (5, 130, 3)]
)
def test_imagenet_zoom_blur(severity, last, step):
    """Against scipy's zoom; the magnifications in per cent."""
    clean = images(1, 64, 64)
    layers = [clean[0].astype(float)]
    for percent in range(100, last + 1, step):
        crop = int(np.ceil(64 / (percent / 100)))
        low = (64 - crop) // 2
        inner = layers[0][low : low + crop, low : low + crop]
        layer = ndimage.zoom(inner, (percent / 100, percent / 100, 1), order=1)
        trim = (len(layer) - 64) // 2
        layers.append(layer[trim : trim + 64, trim : trim + 64])
    result = corrupt(clean, "zoom_blur", severity, 0, "imagenet")
    assert np.abs(result[0].astype(int) - np.mean(layers, 0).astype(int)).max() <= 1


@pytest.mark.parametrize(
    "severity, side, total", [(1, 7, 1), (2, 11, 1), (3, 15, 1), (4, 17, 1.013), (5, 21, 1.011)]
)
def test_imagenet_defocus_blur(severity, side, total):
    """The kernel is a disk with a blurred rim; without room for the rim its sum is above 1."""
    spot = np.zeros((1, 64, 64, 3), np.float32)
    spot[:, 32, 32] = 1
    kernel = defocus_blur(spot, None, *CONSTANTS["imagenet"]["defocus_blur"][severity - 1])[
        0, :, :, 0
    ]
    assert kernel.sum() == pytest.approx(total, abs=0.0005)
    rows = (kernel > 0).any(1).nonzero()[0]
    assert (rows[0], rows[-1]) == (32 - side // 2, 32 + side // 2)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_imagenet_glass_blur(severity):
    """Against the walk from the last pixel to the first, which copies."""
    sigma, shift, passes = CONSTANTS["imagenet"]["glass_blur"][severity - 1]
    clean = images(2, 24, 31).astype(np.float32)
    result = glass_blur(clean, np.random.default_rng(0), sigma, shift, passes)
    inner = 24 - 2 * shift, 31 - 2 * shift
    offsets = np.random.default_rng(0).integers(-shift, shift, (2, passes, 2, *inner))
    walked = np.floor(blur(clean, sigma))
    for i in range(2):
        for k in range(passes):
            for h in range(24 - shift, shift, -1):
                for w in range(31 - shift, shift, -1):
                    down, right = offsets[i, k, :, h - shift - 1, w - shift - 1]
                    walked[i, h, w] = walked[i, h + down, w + right]
    np.testing.assert_array_equal(result, blur(walked, sigma))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("gaussian", 1, 0),
            "unknown corruption 'gaussian', allowed: gaussian_noise, .*, saturate",
        ),
        (("fog", 0, 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
        (("fog", 6, 0), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (("fog", "3", 0), "severity must be 1, 2, 3, 4 or 5, got '3'"),
        (("fog", 1, -1), "seed must not be negative, got -1"),
        (("fog", 1, 0, "tiny"), "unknown constants 'tiny', allowed: cifar, imagenet"),
        (("fog", 1, 0, None), "unknown constants None, allowed: cifar, imagenet"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        corrupt(images(1), *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((1, 32, 32, 3), np.float32), "images must be a uint8 array, got float32"),
        ([[0]], "images must be a uint8 array, got list"),
        (np.zeros((32, 32, 3), np.uint8), r"shape \(N, H, W, 3\).* got \(32, 32, 3\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"got \(1, 3, 32, 32\)"),
        (np.zeros((1, 32, 15, 3), np.uint8), r"H and W at least 16, got \(1, 32, 15, 3\)"),
    ],
)
def test_wrong_images(wrong, message):
    with pytest.raises(ValueError, match=message):
        corrupt(wrong, "fog", 1, 0)
