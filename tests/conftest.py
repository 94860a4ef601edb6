"""What several files share: an empty working folder, a small data set, a way to break a run."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import write
from serving import serving

from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views

SHARED = Path(__file__).parents[2] / "shared"


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

    made = {}
    for name, key, names in (("cifar100", "fine_labels", "fine_label_names"),
                             ("cifar10", "labels", "label_names")):  # fmt: skip
        archive = ARCHIVES[name]
        rng = np.random.default_rng(0)

        def batch(members, per_class):
            labels = rng.permutation(np.arange(per_class * archive.classes) % archive.classes)
            for member, part in zip(members, np.split(labels, len(members))):
                data = np.repeat(part.astype(np.uint8)[:, None], 3072, axis=1)
                yield member, {"data": data, key: part.tolist()}

        contents = dict(batch(archive.train, archive.train_per_class))
        contents |= dict(batch(archive.test, archive.test_per_class))
        contents[archive.meta] = {names: [f"class_{i}" for i in range(archive.classes)]}
        made[name] = write(tmp_path_factory.mktemp(name) / archive.file, contents)
    return made


@pytest.fixture(scope="session")
def shared():
    """The folder of real data that travels with the project."""
    if not SHARED.exists():
        pytest.skip("needs ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def photographs(shared):
    """The 10,000 test images of the real CIFAR-100."""
    from richkd.data import cifar

    _, test, _ = cifar.read(shared / "data/cifar-100-python.tar.gz", "cifar100")
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
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    return ResidentSet(split, mean, std, Views(8, 8, pad=1, flip=True), torch.device("cpu"))


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
