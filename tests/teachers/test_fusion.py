"""Fused logits and features on cases worked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd.teachers.fusion import fuse_features, fuse_logits, semantic_closeness

quick = settings(max_examples=40, deadline=None, derandomize=True)
shares = st.floats(0, 1)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


def test_logits_by_hand():
    teacher, clip = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 8.0]])
    assert fuse_logits(teacher, clip, 0.75).tolist() == [[3.0, 2.0]]


def test_features_by_hand():
    teacher, clip = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    # (3/7, 4/7) has length 5/7.
    torch.testing.assert_close(fuse_features(teacher, clip, 3 / 7), torch.tensor([[0.6, 0.8]]))


def test_the_ends_are_the_teachers_themselves():
    teacher, clip = normal(3, 5), normal(3, 5, seed=1)
    assert torch.equal(fuse_logits(teacher, clip, 1), teacher)
    assert torch.equal(fuse_logits(teacher, clip, 0), clip)
    teacher, clip = unit(3, 5), unit(3, 5, seed=1)
    torch.testing.assert_close(fuse_features(teacher, clip, 1), teacher)
    torch.testing.assert_close(fuse_features(teacher, clip, 0), clip)


@quick
@given(shares, st.integers(0, 99))
def test_numpy_and_torch_agree(alpha, seed):
    teacher, clip = normal(2, 4, 3, seed=seed), normal(2, 4, 3, seed=seed + 100)
    fused = fuse_logits(teacher.numpy(), clip.numpy(), alpha)
    assert isinstance(fused, np.ndarray)
    np.testing.assert_array_equal(fused, fuse_logits(teacher, clip, alpha).numpy())


@quick
@given(shares, st.integers(0, 99))
def test_fused_features_have_unit_norm(lam, seed):
    fused = fuse_features(unit(4, 6, seed=seed), unit(4, 6, seed=seed + 100), lam)
    torch.testing.assert_close(fused.norm(dim=-1), torch.ones(4).double())


def test_opposite_features_cancel_without_nan():
    assert torch.equal(fuse_features(unit(1, 4), -unit(1, 4), 0.5), torch.zeros(1, 4).double())


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("fuse, name", [(fuse_logits, "alpha"), (fuse_features, "lam")])
def test_shares_outside_0_to_1_are_refused(fuse, name, share):
    with pytest.raises(ValueError, match=rf"{name} is {share}: must be in \[0, 1\]"):
        fuse(unit(2, 3), unit(2, 3), share)


@pytest.mark.parametrize("fuse", [fuse_logits, fuse_features])
def test_shapes_that_would_broadcast_are_refused(fuse):
    with pytest.raises(ValueError, match=r"the teacher gives \(4, 3\), CLIP \(1, 3\)"):
        fuse(unit(4, 3), unit(1, 3), 0.5)


def test_semantic_closeness_by_hand():
    # Classes at 0, 90 and 180 degrees: the cosines to class 0 are 1, 0 and -1.
    classes = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    before = probabilities.copy()
    closeness = semantic_closeness(probabilities, np.array([0, 2, 0, 1]), classes)
    # Image 0: (0.3 · 0 + 0.1 · -1) / 0.4; image 1 of class 2: (0.5 · -1 + 0.5 · 0) / 1.
    np.testing.assert_allclose(closeness, [-0.25, -0.5, 0, 0], atol=1e-15)
    np.testing.assert_array_equal(probabilities, before)
