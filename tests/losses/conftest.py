"""The published values of the losses, and their inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"


class Golden(dict[str, Tensor]):
    """Float64 tensors by their names in the files."""

    def check(self, name: str, actual: Tensor) -> None:
        """`actual` has the shape of `name`, and is within 1e-9 of the largest entry."""
        expected = self[name]
        assert actual.shape == expected.shape
        error = (actual.detach() - expected).abs().max() / expected.abs().max()
        assert error < 1e-9, name


@pytest.fixture(scope="session")
def golden() -> Golden:
    found = Golden()
    for file in ("losses.npz", "losses-more.npz"):
        with np.load(FOLDER / file) as arrays:
            found.update({name: torch.from_numpy(np.array(arrays[name])) for name in arrays})
    return found
