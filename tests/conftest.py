"""What several files share: an empty working folder, a small data set, a way to break a run."""

import os

# Two processes of tests share two cores. Read once, when torch and numpy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import official_contents, write
from serving import serving

from richkd.base import devices
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Preprocessing, Views

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def locks_of_this_process(tmp_path_factory):
    """A process of tests keeps a GPU that it has reserved to its end: the others would wait."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("devices")
        patch.setattr(devices, "lock_folder", lambda: folder)
        yield


@pytest.fixture
def evil(tmp_path):
    """An object that runs a command where it is unpickled; the test fails if that happens."""
    done = tmp_path / "unpickled"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {done}",)

    yield Evil()
    assert not done.exists()


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; see serving.py."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """All 60,000 images in the layout of the official archives; an image's bytes are its label."""
    from richkd.data.cifar import ARCHIVES

    return {
        name: write(tmp_path_factory.mktemp(name) / archive.file, official_contents(archive))
        for name, archive in ARCHIVES.items()
    }


@pytest.fixture(scope="session")
def shared():
    """The folder of real data that travels with the project."""
    if not SHARED.exists():
        pytest.skip("needs ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def photographs(shared):
    """The 10,000 test images of the real CIFAR-100."""
    from richkd.data.cifar import read_cifar

    _, test, *_ = read_cifar(shared / "data/cifar-100-python.tar.gz", "cifar100")
    return test


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
    look = Preprocessing([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    return ResidentSet(split, look, Views(8, 8, pad=1, flip=True), torch.device("cpu"))


@pytest.fixture(scope="module")
def teacher(data):
    """A small classifier of them, whose caches tests make."""
    from richkd import models

    torch.manual_seed(0)
    model = models.create("resnet8", 4)
    model(data.batch(torch.arange(22), torch.arange(22) % 18))  # moves the running statistics
    return model.eval()


@pytest.fixture
def small_shards(monkeypatch):
    """5 rows of features a file, 80 of logits: ends lie within batches."""
    from richkd.teachers import caching

    monkeypatch.setattr(caching, "SHARD_BYTES", caching.HEADER + 5 * 64 * 2)


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
