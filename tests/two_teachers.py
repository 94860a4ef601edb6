"""Answers of two teachers on made-up validation images."""

import numpy as np

from richkd.teachers.align import Validation


def labelled(logits, seed=0):
    """Labels drawn from the softmax of the logits (N, C)."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + noise).argmax(1)


def validation(weights=(1.0, 1.0), images=400, classes=5, seed=0, spread=2.0):
    """Two teachers and labels whose probabilities are softmax(u z_T + v z_C), (u, v) = weights."""
    rng = np.random.default_rng(seed)
    teacher, clip = rng.normal(scale=spread, size=(2, images, classes)).astype(np.float32)
    return Validation(teacher, clip, labelled(weights[0] * teacher + weights[1] * clip, seed))


def better_by_class(images=2000, classes=6, seed=0):
    """The teacher knows the first half of the classes, CLIP the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    signal = 2 * np.eye(classes)[labels]
    first = np.arange(classes) < classes / 2
    noise = rng.normal(size=(2, images, classes))
    teacher = np.where(first, signal + noise[0], noise[0])
    clip = np.where(first, noise[1], signal + noise[1])
    return Validation(2 * teacher.astype(np.float32), 2 * clip.astype(np.float32), labels)
