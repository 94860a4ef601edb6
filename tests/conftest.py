"""What several files share: an empty working folder, a small data set, a way to break a run."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from richkd.dataset import Split
from richkd.engine import ResidentSet
from richkd.views import Views


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The library writes below the working folder: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def split():
    """22 images of 8x8 pixels in four classes that their brightness tells apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(22) % 4
    images = rng.integers(0, 64, (22, 8, 8, 3)) + 64 * labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels)


@pytest.fixture(scope="session")
def data(split):
    """The same on the CPU, with the 18 views of pad 1 and flip."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    return ResidentSet(split, mean, std, Views(8, 8, pad=1, flip=True), torch.device("cpu"))


class Killed(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture
def killed_after():
    """A context in which the given module fails after so many calls."""
    @contextmanager
    def context(module, calls):
        seen = iter(range(calls))

        def count(*_):
            if next(seen, None) is None:
                raise Killed

        handle = module.register_forward_pre_hook(count)
        try:
            with pytest.raises(Killed):
                yield
        finally:
            handle.remove()

    return context
