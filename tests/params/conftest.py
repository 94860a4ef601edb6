"""A params.yaml that tests break, one key at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from richkd import params
from richkd.base.errors import InputError

PRESETS = Path(__file__).parents[2] / "presets"


class Plain(yaml.SafeDumper):
    """Writes a value that stands in two places twice, since params refuse aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class File:
    """A preset, in a file of its own, with some keys changed."""

    def __init__(self, path: Path):
        self.path = path

    def write(
        self,
        changes: Mapping[str, Any] = {},  # noqa: B006, nobody changes it
        drop: Iterable[str] = (),
        preset: str = "digits",
    ) -> None:
        """`changes` has values by `section.key`, whose last part may be new; `drop` names keys."""
        raw = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
        for key, value in changes.items():
            *parents, name = key.split(".")
            self._section(raw, parents)[name] = value
        for key in drop:
            *parents, name = key.split(".")
            del self._section(raw, parents)[name]
        self.path.write_text(yaml.dump(raw, Dumper=Plain, sort_keys=False))

    def load(self, *keys: str) -> SimpleNamespace:
        loaded = params.load(*keys, path=self.path)
        params.check_networks(self.path)
        return loaded

    def refusal(self) -> str:
        """The one line that says why the file is refused, without the path that it starts with."""
        with pytest.raises(InputError) as caught:
            self.load("runtime")
        message = str(caught.value)
        assert message.isprintable() and len(message) <= 300
        assert message.startswith(str(self.path))
        return message.removeprefix(str(self.path))

    @staticmethod
    def _section(raw: Any, keys: Iterable[str]) -> Any:
        for key in keys:
            raw = raw[key]
        return raw


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(tmp_path_factory.mktemp("params") / "params.yaml")
