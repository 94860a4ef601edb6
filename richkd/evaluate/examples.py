"""Test images that show where the models agree and disagree."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax

from richkd.data.dataset import Manifest, Split
from richkd.data.pictures import picture
from richkd.evaluate.best import Best
from richkd.evaluate.scores import read_logits
from richkd.evaluate.summary import TEACHERS


class Example(NamedTuple):
    """A test image by its index, why it was chosen, and how many images are of its kind."""

    image: int
    kind: str
    images_of_kind: int


def choose_examples(correct: Mapping[str, np.ndarray], best: Best) -> list[Example]:
    """The first test image of each kind of agreement or disagreement that occurs, none twice.

    `correct` has for each model whether its answers are right, (N,) bool. Kinds for a model come
    with kinds against it, so that its gains are not shown without its losses. Without a reference
    no two students are compared.
    """
    teacher, clip, fused = (correct[model] for model in TEACHERS)
    student, reference = correct[best.student], best.reference
    everyone = np.stack(list(correct.values()))
    kinds = {
        "Every model is right": everyone.all(0),
        "Every model is wrong": ~everyone.any(0),
        "The teacher is wrong, the fused teacher right": ~teacher & fused,
        "CLIP is wrong, the fused teacher right": ~clip & fused,
        "One part is right, the fused teacher wrong": (teacher | clip) & ~fused,
        f"The fused teacher is right, {best.student} wrong": fused & ~student,
    }
    if reference is not None:
        kinds |= {
            f"{reference} is wrong, {best.student} right": ~correct[reference] & student,
            f"{reference} is right, {best.student} wrong": correct[reference] & ~student,
        }
    chosen: list[Example] = []
    for kind, of_kind in kinds.items():
        taken = {example.image for example in chosen}
        free = [image for image in np.flatnonzero(of_kind) if image not in taken]
        if free:
            chosen.append(Example(int(free[0]), kind, int(of_kind.sum())))
    return chosen


def cards(
    models: Sequence[str], best: Best, test: Split | Manifest, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The examples as `report.html` takes them, with each model's answer."""
    # Of the first seed: an example shows the answer of one run, not a mean.
    shape = None, len(test.labels), len(classes)
    logits = {model: read_logits(model, "test", shape, test.labels, "r")[0] for model in models}
    answers = {model: scores.argmax(1) for model, scores in logits.items()}
    correct = {model: answer == test.labels for model, answer in answers.items()}
    shown = []
    for index, kind, count in choose_examples(correct, best):
        rows = []
        for model in models:
            confidence = softmax(logits[model][index].astype(float)).max()
            answer = classes[answers[model][index]]
            rows.append((model, answer, bool(correct[model][index]), f"{100 * confidence:.0f} %"))
        shown.append(
            {
                "image": picture_uri(test, index),
                "index": index,
                "truth": classes[test.labels[index]],
                "kind": kind,
                "count": count,
                "rows": rows,
            }
        )
    return shown


def picture_uri(test: Split | Manifest, index: int) -> str:
    """A test image as a data URI; an image from a file is reduced to at most 192 pixels a side."""
    if isinstance(test, Split):
        image = Image.fromarray(test.images[index])
    else:
        image = picture(Path(test.root, test.paths[index]))
        image.thumbnail((192, 192))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
