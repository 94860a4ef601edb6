"""Corruptions against what the benchmark's own generator gives (golden/corruptions.npz).

Deterministic corruptions: within one grey level on 99 % of the values.

Random ones cannot match pixel by pixel. Their mean absolute change from clean (averaged over the
16 images), and the mean and standard deviation of the images, are compared with the expectation
of ours over DRAWS seeds of the same 16 images, per severity, within 10 %. What cannot hold:

- NOISE_LIMITED: the golden's mean change itself wanders by 8 to 10 % (one standard deviation over
  400 seeds of ours) with the seed, because 16 images draw few ice photographs, or few splashes of
  mud. The golden is off by 10, 11 and 12 % there. It must lie within 3 standard deviations, and
  the mean over the five severities within 10 %.
- Mean and deviation of each single image within 10 %: for the corruptions in WIDE one image varies
  by more than that from seed to seed (fog by up to a third). There the golden must lie within 10 %
  or 4 standard deviations of ours.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd.corruptions import BENCHMARK, EXTRA, corrupt, directional_blur

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "corruptions.npz"
DRAWS = 40
SEVERITIES = (1, 2, 3, 4, 5)
ALL = BENCHMARK + EXTRA
DETERMINISTIC = (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
    "gaussian_blur", "saturate",
)  # fmt: skip
RANDOM = tuple(name for name in ALL if name not in DETERMINISTIC)
NOISE_LIMITED = {("frost", 4), ("frost", 5), ("spatter", 4)}
WIDE = ("snow", "frost", "fog", "elastic_transform")


@functools.cache
def golden():
    if not GOLDEN.exists():
        pytest.skip("shared/golden/corruptions.npz is absent: no comparison with the benchmark")
    with np.load(GOLDEN) as file:
        return dict(file)


def images(n, height=32, width=32):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


@functools.cache
def statistics(name, severity):
    """Mean absolute change, mean and sd of each image: golden (16, 3), ours (DRAWS, 16, 3)."""
    clean, theirs = golden()["clean"], golden()[name][severity - 1]
    ours = corrupt(np.tile(clean, (DRAWS, 1, 1, 1)), name, severity, seed=0).reshape(DRAWS, *clean.shape)

    def measure(x):
        x, axes = x.astype(np.float64), (-3, -2, -1)
        return np.stack([np.abs(x - clean).mean(axes), x.mean(axes), x.std(axes)], -1)

    return measure(theirs), measure(ours)


def test_names():
    assert len(BENCHMARK) == 15 and len(EXTRA) == 4
    assert set(ALL) <= set(golden())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_equals_golden(name, severity):
    ours = corrupt(golden()["clean"], name, severity, seed=0).astype(int)
    assert (np.abs(ours - golden()[name][severity - 1]) <= 1).mean() >= 0.99


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_random_matches_golden_statistics(name, severity):
    theirs, ours = statistics(name, severity)
    expected, noise = ours.mean((0, 1)), ours.mean(1).std(0)
    error = np.abs(theirs.mean(0) - expected)
    assert (error[1:] <= 0.1 * expected[1:]).all()
    if (name, severity) in NOISE_LIMITED:
        assert 3 * noise[0] > 0.1 * expected[0], "not limited by noise: compare within 10 %"
        assert error[0] <= 3 * noise[0]
    else:
        assert error[0] <= 0.1 * expected[0]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_random_matches_golden_image_by_image(name, severity):
    theirs, ours = (x[..., 1:] for x in statistics(name, severity))
    allowed = 0.1 * ours.mean(0)
    if name in WIDE:
        allowed = np.maximum(allowed, 4 * ours.std(0))
    assert (np.abs(theirs - ours.mean(0)) <= allowed).all()


@pytest.mark.parametrize("name", ["frost", "spatter"])
def test_noise_limited_change_matches_over_all_severities(name):
    theirs, ours = zip(*(statistics(name, severity) for severity in SEVERITIES), strict=True)
    assert np.mean([x[:, 0] for x in theirs]) == pytest.approx(np.mean([x[..., 0] for x in ours]), rel=0.1)


@pytest.mark.parametrize("severity, radius, sigma", [(3, 6, 2), (5, 9, 2.5)])
def test_golden_motion_blur_is_ours_at_some_angle(severity, radius, sigma):
    angles = np.linspace(-45, 45, 181)
    for clean, theirs in zip(golden()["clean"][:4], golden()["motion_blur"][severity - 1], strict=False):
        ours = directional_blur(np.repeat(clean[None].astype(np.float32), 181, 0), angles, radius, sigma)
        assert np.abs(ours - theirs).mean((1, 2, 3)).min() < 0.05


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


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("name", ALL)
def test_small_images(name, n):
    clean = images(n, 16, 16)
    result = corrupt(clean, name, 5, seed=0)
    assert result.shape == clean.shape and result.dtype == np.uint8
    assert n == 0 or not np.array_equal(result, clean)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(ALL),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**40),
    n=st.integers(0, 3),
    height=st.integers(16, 45),
    width=st.integers(16, 45),
    level=st.sampled_from([None, 0, 1, 255]),
)
def test_any_size_and_content(name, severity, seed, n, height, width, level):
    clean = images(n, height, width) if level is None else np.full((n, height, width, 3), level, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        result = corrupt(clean, name, severity, seed)
    assert result.shape == clean.shape and result.dtype == np.uint8


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur", "glass_blur", "elastic_transform", "motion_blur"])
def test_blurs_and_warps_keep_a_flat_image(name):
    flat = np.full((2, 20, 33, 3), 77, np.uint8)
    assert np.abs(corrupt(flat, name, 5, seed=0).astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("gaussian", 1, 0), "unknown corruption 'gaussian', allowed: gaussian_noise, .*, saturate"),
        (("fog", 0, 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
        (("fog", 6, 0), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (("fog", "3", 0), "severity must be 1, 2, 3, 4 or 5, got '3'"),
        (("fog", 1, -1), "seed must not be negative, got -1"),
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
