"""The section `fusion`: what may be fitted, and where there is nothing to fit it on."""

from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

PRESETS = Path(__file__).parents[2] / "presets"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["fusion.lam=0.4"], ("none", "auto", 0.4, False)),
        (["fusion.alpha=0.5"], ("none", 0.5, "auto", False)),
        (["fusion.alpha=0.5", "fusion.lam=0.3"], ("none", 0.5, 0.3, False)),
        (["fusion.align=temperature"], ("temperature", "auto", "auto", False)),
        (
            ["fusion.align=standardize", "fusion.per_class=true"],
            ("standardize", "auto", "auto", True),
        ),
    ],
)
def test_an_override_is_taken(file, words, values):
    """The override is written into params.yaml as by `dvc exp run -S`."""
    file.path.write_text((PRESETS / "digits.yaml").read_text())
    apply_overrides(file.path, words)
    fusion = file.load("fusion").fusion
    assert (fusion.align, fusion.alpha, fusion.lam, fusion.per_class) == values


REFUSED = {
    "another alignment": (
        "digits",
        {"fusion.align": "margin"},
        "fusion.align is 'margin': should be 'none', 'temperature' or 'standardize'",
    ),
    "another word": (
        "digits",
        {"fusion.alpha": "best"},
        "fusion.alpha is 'best': should be a valid number or should be 'auto'",
    ),
    "an alpha a class from a number": (
        "digits",
        {"fusion.per_class": True, "fusion.alpha": 0.4},
        "fusion.per_class is true: needs fusion.alpha: auto, which it starts from (now 0.4)",
    ),
    "alpha without validation images": (
        "cifar100",
        {"fusion.alpha": "auto"},
        "fusion.alpha is 'auto': is fitted on validation images, and dataset.validation is 0",
    ),
    "alignment without validation images": (
        "imagenet-r34-r18",
        {"fusion.align": "standardize", "fusion.seen_validation": "allow"},
        "fusion.align is 'standardize': is fitted on validation images, and dataset.validation "
        "is 0",
    ),
    "alpha on images that the teacher has seen": (
        "cifar100-mini",
        {"fusion.alpha": "auto"},
        "fusion.alpha is 'auto': is fitted on validation images, and the teacher, of "
        "teacher.source 'checkpoint', may have been trained on them, which makes the fit "
        "meaningless: set fusion.seen_validation: allow if it was not",
    ),
    "temperatures on images that the teacher has seen": (
        "cifar100",
        {"fusion.align": "temperature", "dataset.validation": 5000},
        "fusion.align is 'temperature': is fitted on validation images, and the teacher, of "
        "teacher.source 'mdistiller', may have been trained on them, which makes the fit "
        "meaningless: set fusion.seen_validation: allow if it was not",
    ),
    "standardized rows of which a table has a part": (
        "digits",
        {"fusion.align": "standardize", "cache.top_k": 10},
        "fusion.align is 'standardize': needs all logits of an image, and cache.top_k keeps 10: "
        "set cache.top_k: null",
    ),
    "an alpha a class for rows of which a table has a part": (
        "digits",
        {"fusion.alpha": "auto", "fusion.per_class": True, "cache.top_k": 10},
        "fusion.per_class is true: needs all logits of an image, and cache.top_k keeps 10: "
        "set cache.top_k: null",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(file, name):
    preset, changes, line = REFUSED[name]
    file.write(changes, preset=preset)
    assert file.refusal() == f": {line}"


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("cifar100-mini", {"fusion.alpha": "auto", "fusion.seen_validation": "allow"}),
        ("cifar100-mini", {"fusion.align": "standardize"}),  # looks at no label
        ("digits", {"fusion.align": "temperature", "cache.top_k": 10}),
        ("digits", {"fusion.alpha": "auto", "cache.top_k": 10}),
    ],
)
def test_allows(file, preset, changes):
    file.write(changes, preset=preset)
    assert file.load("fusion")
