"""The fused teacher: what it answers, and its recipe."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import SCALES, fused, generator, streamed

from richkd.base.records import read_json
from richkd.losses import standardize
from richkd.teachers.fused import Fused
from richkd.teachers.fusion import Recipe, fuse_features, load_recipe

IDS, VIEWS = torch.tensor([21, 0, 3, 8]), torch.tensor([17, 0, 4, 11])


def cosines(features):
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_inner_products_of_features_are_the_mixture_of_both_cosines(lam):
    teacher = fused(lam=lam)
    features = teacher.features(IDS, VIEWS)
    both = [cosines(part.features(IDS, VIEWS)) for part in (teacher.teacher, teacher.clip)]
    torch.testing.assert_close(features @ features.T, lam * both[0] + (1 - lam) * both[1])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    assert features.shape == (4, teacher.feature_dim) == (4, 22)


def test_the_embedder_mixes_two_learned_heads():
    torch.manual_seed(0)
    teacher = fused(lam=0.3)
    embedder = teacher.embedder(8)
    heads = [part.head for part in (embedder.teacher, embedder.clip)]
    features = [part.features(IDS, VIEWS) for part in (teacher.teacher, teacher.clip)]
    both = (F.normalize(head(x), dim=1) for head, x in zip(heads, features))
    torch.testing.assert_close(embedder(IDS, VIEWS), fuse_features(*both, 0.3))
    assert [head.in_features for head in heads] == [12, 10]


def test_scales_come_before_the_mixture():
    logits = [torch.randn(5, 4, generator=generator(seed)) for seed in (0, 1)]
    recipe = Recipe(0.25, 0.5, {"teacher": 2.0, "clip": 0.5}, {})
    expected = 0.25 * 2.0 * logits[0] + 0.75 * 0.5 * logits[1]
    torch.testing.assert_close(recipe.mix(*logits), expected)
    mixed = recipe.mix(*(x.numpy() for x in logits))
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, expected.numpy(), rtol=1e-6)


def test_a_recipe_is_read_as_it_was_written(here):
    recipe = Recipe(0.4, 0.3, SCALES, {"teacher": "a", "clip": "b"})
    recipe.save()
    assert load_recipe() == recipe
    assert read_json("cache/fused/fused.json")["alpha"] == 0.4


def test_both_parts_are_told_of_epochs_and_batches(data):
    whole, teacher = fused(), streamed(fused()).reader(data)
    for _ in range(2):
        batches = [(IDS, VIEWS), (IDS[:2], VIEWS[:2])]
        teacher.begin_epoch(batches)
        for batch in batches:
            teacher.next_batch()
            assert torch.equal(teacher.logits(*batch), whole.logits(*batch))
            assert torch.equal(teacher.features(*batch), whole.features(*batch))


def test_a_teacher_without_maps_says_so():
    with pytest.raises(NotImplementedError, match="Fused has no feature maps"):
        fused().maps(IDS, VIEWS)


def test_an_alpha_a_class_is_for_a_column():
    alphas = (0.0, 0.25, 0.5, 1.0)
    tables = fused()
    recipe = Recipe(0.4, 0.5, {"teacher": 2.0, "clip": 1.0}, {}, class_alphas=alphas)
    teacher, clip = (x.logits(IDS, VIEWS) for x in (tables.teacher, tables.clip))
    centred = [x - x.mean(1, keepdim=True) for x in (2 * teacher, clip)]
    shares = torch.tensor(alphas)
    expected = shares * centred[0] + (1 - shares) * centred[1]
    found = Fused(recipe, tables.teacher, tables.clip).logits(IDS, VIEWS)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1))
    np.testing.assert_allclose(recipe.mix(teacher.numpy(), clip.numpy()), found, atol=1e-6)


def test_standardized_tables_are_mixed_as_their_logits_are():
    tables = fused()
    recipe = Recipe(0.4, 0.5, {"teacher": 3.0, "clip": 3.0}, {}, standardize=True)
    both = [standardize(x.logits(IDS, VIEWS)) for x in (tables.teacher, tables.clip)]
    found = Fused(recipe, tables.teacher, tables.clip).logits(IDS, VIEWS)
    torch.testing.assert_close(found, 3 * (0.4 * both[0] + 0.6 * both[1]))


def test_what_has_its_default_value_is_not_recorded():
    plain = Recipe(0.4, 0.3, SCALES, {})
    assert list(plain.to_dict()) == ["alpha", "lam", "scales", "tables"]
    other = plain._replace(standardize=True, class_alphas=(0.5, 0.25))
    assert list(other.to_dict()) == [*plain.to_dict(), "standardize", "class_alphas"]
