"""What changes a fingerprint: on a small made-up project, then on a copy of the real one."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from richkd.fingerprints import code_fingerprints

ROOT = Path(__file__).parents[1]

# One module of each kind. `stages/use.py` reaches all but `data/other.py` and `losses/dkd.py`.
PROJECT = {
    "richkd/__init__.py": "from richkd.data import other\n",
    "richkd/data/__init__.py": "",
    "richkd/data/read.py": """
import os
from math import pi, tau

from richkd.data.views import crop

LIMIT = 3


def load(path):
    return os.path.join(path, crop(LIMIT, pi, tau))


class Reader:
    size: int = 0
""",
    "richkd/data/views.py": "def crop(*sizes):\n    return str(sizes)\n",
    "richkd/data/other.py": "OTHER = 1\n",
    "richkd/models/__init__.py": "from importlib import import_module\n",
    "richkd/models/vgg.py": "DEPTH = 8\n",
    "richkd/losses/__init__.py": "from richkd.losses.dkd import dkd\n",
    "richkd/losses/terms.py": """
from importlib import import_module

TERMS: dict[str, str] = {"kd": "logits", "dkd": "logits and labels"}


def find(name):
    return getattr(import_module(f"richkd.losses.{name}"), name)
""",
    "richkd/losses/check.py": "LEAST = 0\n",
    "richkd/losses/kd.py": "from richkd.losses.check import LEAST\n\nkd = LEAST\n",
    "richkd/losses/dkd.py": "dkd = 2\n",
    "richkd/params/__init__.py": "from richkd.data import other\n",
    "richkd/base/files.py": "from richkd.data import other\n",
    "richkd/train.py": "from richkd.losses import kd\nfrom richkd.losses.terms import find\n",
    "stages/__init__.py": "from richkd.data import other\n",
    "stages/use.py": """
from richkd import params
from richkd.base import files
from richkd.data import read
from stages import run


def main():
    from richkd import models, train
""",
}
READER = "richkd/data/read.py"


@pytest.fixture
def project(tmp_path):
    """Writes PROJECT, some files with other texts; gives the fingerprints of stages/use.py."""

    def of_use(terms=("ce", "kd"), **changed):
        shutil.rmtree(tmp_path)
        for path, text in {**PROJECT, **changed}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return code_fingerprints("stages/use.py", terms, tmp_path)

    return of_use


def test_modules_are_those_reached_by_import(project):
    assert list(project()) == [
        "richkd/data/read.py",
        "richkd/data/views.py",
        "richkd/losses/check.py",
        "richkd/losses/kd.py",
        "richkd/losses/terms.py",
        "richkd/models/__init__.py",
        "richkd/models/vgg.py",
        "richkd/train.py",
        "stages/use.py",
    ]


@pytest.mark.parametrize(
    "old, new",
    [
        ("LIMIT = 3", "LIMIT = 3  # a comment"),
        ("LIMIT = 3", "\n\nLIMIT   =   3"),
        ("\nimport os", '"""A module."""\n\nimport os'),
        ("    return os", '    """A function."""\n    return os'),
        ("    size: int", '    """A class."""\n\n    size: int'),
        ("size: int = 0", 'size: int = 0\n    """An attribute."""'),
        ("import os\nfrom math import pi, tau", "from math import tau, pi\nimport os"),
        ("import pi, tau", "import pi\nfrom math import tau"),
    ],
)
def test_what_no_result_follows_from_changes_nothing(project, old, new):
    assert old in PROJECT[READER]
    assert project(**{READER: PROJECT[READER].replace(old, new)}) == project()


@pytest.mark.parametrize(
    "old, new",
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("os.path.join(path, ", "os.path.join(path, path, "),
        ("size: int = 0", "size: int"),
        ("import pi, tau", "import pi, e as tau"),
        ("import os", "import posix as os"),
        ("import os", "import os\nimport sys"),
        ("import crop", "import crop as cut, crop"),
    ],
)
def test_other_code_changes_the_module_alone(project, old, new):
    assert old in PROJECT[READER]
    changed = project(**{READER: PROJECT[READER].replace(old, new)})
    assert {path for path, _ in changed.items() ^ project().items()} == {READER}


def test_all_versions_of_python_agree(project):
    """Their syntax trees differ, above all in f-strings and in fields without a value."""
    head = "def text(x: int | None, w, *, n=None):\n"
    text = head + "    return f'{x!r:>{w}} ' f'{n}' '', None, ..., 1e3\n"
    assert project(**{READER: text})[READER] == "59dce142f7569e76"


@pytest.mark.parametrize(
    "statement",
    [
        "from richkd.data import other",
        "from richkd.data.other import OTHER",
        "import richkd.data.other",
        "import richkd.data.other as o",
        "from . import other",
        "from .other import OTHER",
        "from ..data import other",
        "def later():\n    from richkd.data import other",
        "if LIMIT:\n    import richkd.data.other",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from . import other",
    ],
)
def test_every_import_statement_is_followed(project, statement):
    found = project(**{READER: f"{PROJECT[READER]}\n{statement}\n"})
    assert found.keys() - project().keys() == {"richkd/data/other.py"}


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_type_checkers_changes_nothing(project, test):
    text = f"{PROJECT[READER]}\nif {test}:\n    from richkd.data import other\n"
    assert project(**{READER: text}) == project()


def test_a_package_with_code_counts(project):
    text = "from richkd.data import other\n"
    found = project(**{"richkd/data/__init__.py": text})
    assert found.keys() - project().keys() == {"richkd/data/__init__.py", "richkd/data/other.py"}


def test_models_count_whole(project):
    found = project(**{"richkd/models/wrn.py": "DEPTH = 16\n"})
    assert found.keys() - project().keys() == {"richkd/models/wrn.py"}


def test_a_new_loss_changes_nothing(project):
    terms = PROJECT["richkd/losses/terms.py"]
    edited = {
        "richkd/losses/new.py": "new = 3\n",
        "richkd/losses/terms.py": terms.replace("{", '{"new": "features", ', 1),
        "richkd/losses/__init__.py": "from richkd.losses.new import new\n",
    }
    for own in (), ("ce",), ("ce", "kd"), ("ce", "dkd"):
        assert project(own, **edited) == project(own)


def test_a_variant_counts_its_own_terms(project):
    terms, entry = "richkd/losses/terms.py", '"dkd": "logits and labels"'
    other = {
        terms: PROJECT[terms].replace(entry, '"dkd": "logits"'),
        "richkd/losses/dkd.py": "dkd = 3",
    }
    assert project(**other) == project()
    changed = project(("ce", "dkd"), **other).items() ^ project(("ce", "dkd")).items()
    assert {path for path, _ in changed} == {terms, "richkd/losses/dkd.py"}
    code = {terms: PROJECT[terms].replace("getattr", "setattr")}
    assert project((), **code) != project(())


def test_the_table_of_terms_need_not_be_annotated(project):
    terms = PROJECT["richkd/losses/terms.py"].replace(": dict[str, str]", "")
    edited = terms.replace("{", '{"new": "features", ', 1)
    first, second = (project(**{"richkd/losses/terms.py": text}) for text in (terms, edited))
    assert first == second != project()


def test_a_term_without_a_file_is_named(project):
    with pytest.raises(OSError, match="losses/unknown.py"):
        project(("unknown",))


# The real repository. Terms of made-up variants, so that params.yaml may hold any.

VARIANTS = {"kd": ("ce", "kd"), "dkd": ("ce", "dkd"), "kd_crd": ("ce", "kd", "crd")}


def written(root):
    """The fingerprints of all stages; `distill/<variant>` for each of VARIANTS."""
    scripts = [f"stages/{path.name}" for path in (root / "stages").glob("[!_]*.py")]
    found = {Path(script).stem: code_fingerprints(script, (), root) for script in scripts}
    of_variants = {
        f"distill/{name}": code_fingerprints("stages/distill.py", terms, root)
        for name, terms in VARIANTS.items()
    }
    return {name: found[name] for name in found.keys() - {"code", "distill"}} | of_variants


@pytest.fixture
def tree(tmp_path):
    """A copy of the project's code."""
    for name in ("richkd", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def with_docstrings(text):
    """A comment at both ends; a docstring for the module and each class and function."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if first.lineno > node.lineno:  # else the body is on the line of `def`
                line = min(
                    [first.lineno, *(x.lineno for x in getattr(first, "decorator_list", ()))]
                )
                lines[line - 1] = f'{" " * first.col_offset}"""Added."""\n{lines[line - 1]}'
    return "\n".join(["# Added.", '"""Added."""', *lines, "# Added."])


MODULES = [
    str(path.relative_to(ROOT))
    for name in ("richkd", "stages")
    for path in sorted((ROOT / name).rglob("*.py"))
]


def test_comments_and_docstrings_in_all_modules_change_nothing(tree):
    before = written(tree)
    for path in MODULES:
        (tree / path).write_text(with_docstrings((tree / path).read_text()))
    assert written(tree) == before


EVERY_NETWORK = {
    "teacher",
    "clip",
    "cache",
    "alone",
    "evaluate",
    *(f"distill/{x}" for x in VARIANTS),
}


@pytest.mark.parametrize(
    "path, stages",
    [
        ("richkd/data/cifar.py", {"prepare"}),
        ("richkd/data/digits.py", {"prepare"}),
        ("richkd/data/shifted.py", {"shift"}),
        ("richkd/data/imagenet_c.py", {"corrupt"}),
        ("richkd/data/corruptions.py", {"corrupt"}),
        ("richkd/data/folder.py", {"corrupt", "prepare", "shift"}),
        ("richkd/models/resnet.py", EVERY_NETWORK),
        ("richkd/models/wrn.py", EVERY_NETWORK),
        ("richkd/engine.py", EVERY_NETWORK),
        ("richkd/base/distributed.py", EVERY_NETWORK),
        ("richkd/train/fit.py", EVERY_NETWORK - {"clip", "cache", "evaluate"}),
        ("richkd/train/terms.py", {f"distill/{x}" for x in VARIANTS}),
        ("richkd/clip/training.py", {"clip"}),
        ("richkd/losses/dkd.py", {"distill/dkd"}),
        ("richkd/losses/crd.py", {"distill/kd_crd"}),
        ("richkd/losses/kd.py", {"distill/kd", "distill/kd_crd"}),
        ("richkd/losses/check.py", {f"distill/{x}" for x in VARIANTS}),
        ("richkd/losses/terms.py", {f"distill/{x}" for x in VARIANTS}),
        ("richkd/losses/__init__.py", set()),
        ("richkd/evaluate/calibration.py", {"calibrate", "fusion"}),
        ("richkd/evaluate/report.py", {"report"}),
        ("richkd/params/__init__.py", set()),
        ("richkd/base/files.py", set()),
        ("stages/__init__.py", set()),
        ("stages/evaluate_fused.py", {"evaluate_fused"}),
    ],
)
def test_other_code_changes_the_stages_that_use_it(tree, path, stages):
    before = written(tree)
    (tree / path).write_text(f"{(tree / path).read_text()}\nADDED = 1\n")
    after = written(tree)
    assert {name for name in after if after[name] != before[name]} == stages


def test_a_new_loss_of_the_real_table_changes_nothing(tree):
    before = written(tree)
    terms = tree / "richkd/losses/terms.py"
    text = terms.read_text()
    start = text.index("{", text.index("TERMS"))
    terms.write_text(f'{text[: start + 1]}"new": "logits",{text[start + 1 :]}')
    shutil.copy(tree / "richkd/losses/kd.py", tree / "richkd/losses/new.py")
    assert written(tree) == before


def test_modules_are_chosen_by_name_in_models_and_losses_alone():
    """What is imported by name is not found by reading import statements."""
    by_name = {path for path in MODULES if "import_module(" in (ROOT / path).read_text()}
    assert by_name <= {"richkd/models/__init__.py", "richkd/losses/terms.py"}


def test_only_the_terms_of_training_import_losses():
    """Their imports of losses are not followed: they find the loss of each term by its name."""
    importing = {
        path
        for path in MODULES
        if re.search(r"from richkd\.losses|import .*\blosses\b", (ROOT / path).read_text())
        and Path(path).parent.name != "losses"
    }
    assert importing == {"richkd/train/terms.py"}


# The stage.


def run_code(root):
    return subprocess.run(
        [sys.executable, "-m", "stages.code"], cwd=root, capture_output=True, text=True
    )


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}


def test_the_stage_writes_a_file_for_each_stage_and_variant(tree):
    shutil.copy(ROOT / "params.yaml", tree)
    stale = tree / "fingerprints/distill/gone.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    done = run_code(tree)
    found = content(tree / "fingerprints")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fingerprints: {len(found)} files\n"
    assert not stale.exists()
    for name, code in written(tree).items():
        if "/" not in name:
            assert json.loads(found.pop(f"{name}.json")) == {"code": code}
    assert all(name.startswith("distill/") for name in found)
    for name, text in found.items():
        told = json.loads(text)
        assert list(told["terms"])[0] == "ce"
        assert all({"weight", "warm_up"} <= options.keys() for options in told["terms"].values())
        assert told["code"] == code_fingerprints("stages/distill.py", list(told["terms"]), tree), (
            name
        )


def test_bad_params_are_one_line_and_nothing_is_written(tree):
    params = (ROOT / "params.yaml").read_text()
    (tree / "params.yaml").write_text(params.replace("dataset:", "data_set:", 1))
    (tree / "fingerprints/distill").mkdir(parents=True)
    (tree / "fingerprints/distill/old.json").write_text("{}")
    done = run_code(tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: params.yaml: ") and done.stderr.count("\n") == 1
    assert content(tree / "fingerprints") == {"distill/old.json": "{}"}


WANTED_IN_VAIN = {
    "device": ("digits", "  device: auto", "  device: cuda", "runtime.device is 'cuda': no CUDA"),
    "graphs": (
        "digits",
        "  step: auto",
        "  step: graph",
        "runtime.step is 'graph': no CUDA device",
    ),
    "model": (
        "cifar100",
        "model: ViT-L-14",
        "model: ViT-L-15",
        "clip.model is 'ViT-L-15': must be",
    ),
    "tag": (
        "cifar100",
        "tag: openai",
        "tag: openia",
        "clip.tag is 'openia': ViT-L-14 has openai, ",
    ),
}


@pytest.mark.parametrize("name", WANTED_IN_VAIN)
def test_what_is_not_to_be_had_is_told_before_any_work(tree, name):
    preset, old, new, said = WANTED_IN_VAIN[name]
    if "CUDA" in said and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    text = (ROOT / f"presets/{preset}.yaml").read_text()
    assert old in text
    (tree / "params.yaml").write_text(text.replace(old, new, 1))
    done = run_code(tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
    assert len(done.stderr) <= 301 and not (tree / "fingerprints").exists()


def test_the_stage_needs_no_torch():
    script = "import sys, stages.code; assert not {'torch', 'scipy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
