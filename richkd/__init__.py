"""RichKD: distil an image classifier from a fused teacher (arXiv 2511.09286)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from richkd.use.student import Student


def load(model: Path | str, seed: int | None = None) -> Student:
    """`richkd.use.student.load`: the classifier in a folder such as `models/LF`, ready for use."""
    from richkd.use import student  # imports torch, which most of richkd does without

    return student.load(model, seed)
