"""Controls: CLIP's logits changed in the fused teacher, and nothing else."""

import pytest
import torch
from toys import fused, generator, streamed

from richkd.base.files import write_json
from richkd.teachers.controls import shuffle, with_control
from richkd.teachers.lookup import open_control

IDS, VIEWS = torch.tensor([21, 0, 3, 8]), torch.tensor([17, 0, 4, 11])
LABELS = torch.arange(22) % 4


def both(teacher):
    return teacher.teacher.logits(IDS, VIEWS), teacher.clip.logits(IDS, VIEWS)


def test_cosines_are_the_logits_without_their_scale(here):
    write_json(
        "cache/clip/cache.json",
        {
            "set of views": {"held": "center"},
            "top k": None,
            "shape": {"views": 1, "images": 22, "classes": 4},
            "content": {},
            "logit scale": 20.0,
        },
    )
    plain = fused(alpha=0.3)
    changed = open_control(plain, "cosines", LABELS)
    teacher, clip = both(plain)
    torch.testing.assert_close(changed.logits(IDS, VIEWS), 0.3 * teacher + 0.7 * clip / 20)


def test_shuffled_logits_are_fused_and_features_stay():
    plain = fused(alpha=0.3)
    changed = with_control(plain, "shuffled", 20.0, LABELS)
    teacher, clip = both(plain)
    expected = 0.3 * teacher + 0.7 * shuffle(clip, IDS, LABELS[IDS])
    torch.testing.assert_close(changed.logits(IDS, VIEWS), expected)
    assert torch.equal(changed.features(IDS, VIEWS), plain.features(IDS, VIEWS))
    assert changed.feature_dim == plain.feature_dim
    assert changed.embedder(8)(IDS, VIEWS).shape == (4, 8)


@pytest.mark.parametrize("control", ["cosines", "shuffled"])
def test_tables_that_are_streamed_are_changed_alike(data, control):
    whole = with_control(fused(), control, 20.0, LABELS)
    reader = with_control(streamed(fused()), control, 20.0, LABELS).reader(data)
    reader.begin_epoch([(IDS, VIEWS)])
    reader.next_batch()
    assert torch.equal(reader.logits(IDS, VIEWS), whole.logits(IDS, VIEWS))


def test_the_label_keeps_its_logit_and_the_others_change_places():
    logits = torch.randn(500, 7, generator=generator())
    ids, labels = torch.arange(500), torch.arange(500) % 7
    shuffled = shuffle(logits, ids, labels)
    own = labels[:, None]
    assert torch.equal(shuffled.gather(1, own), logits.gather(1, own))
    assert torch.equal(shuffled.sort(1).values, logits.sort(1).values)
    assert (shuffled == logits).float().mean() < 0.4  # 1/7, and 1/6 of the other 6/7, is 0.29


def test_the_order_follows_from_the_id_alone():
    logits = torch.randn(4, 100, generator=generator())
    labels = torch.full((4,), 3)
    one = shuffle(logits, IDS, labels)
    back = shuffle(logits.flip(0), IDS.flip(0), labels).flip(0)
    assert torch.equal(one, back)
    row = logits[:1].expand(4, -1)
    assert len(shuffle(row, IDS, labels).unique(dim=0)) == 4


def test_every_order_of_the_others_is_as_likely():
    images = 6000
    logits = torch.arange(4.0).expand(images, 4)
    shuffled = shuffle(logits, torch.arange(images), torch.full((images,), 1))
    orders, counts = shuffled.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts - images / 6).abs().max() < 5 * (images / 6) ** 0.5
