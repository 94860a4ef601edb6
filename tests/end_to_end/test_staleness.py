"""Which stages an edit of the code makes stale, asked of the real DVC."""

import json
import shutil

import pipeline
import pytest
from dvc.repo import Repo

pytestmark = pytest.mark.slow

# What runs networks: also through `richkd.engine`.
NETWORKS = {
    "alone",
    "cache@clip",
    "cache@teacher",
    "clip",
    "distill@*",
    "evaluate@*",
    "evaluate_reference@ce",
    "evaluate_reference@clip",
    "evaluate_reference@teacher",
    "teacher",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A clone with a variant `dkd` more, in which DVC takes each stage for done.

    The outputs are stand-ins, since DVC compares their hashes alone.
    """
    folder = pipeline.clone(tmp_path_factory.mktemp("clone"))
    shutil.copy(pipeline.REPOSITORY / "params.yaml", folder)
    dkd = {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0}
    pipeline.edit(folder, "distill.variants.with_dkd", {"teacher": "teacher", "dkd": dkd})
    pipeline.command(folder, "python", "-m", "stages.code")
    for out in Repo(folder).index.outs:
        path = folder / out.fs_path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("a stand-in")
    pipeline.command(folder, "dvc", "commit", "--force", "--quiet")
    pipeline.commit(folder, "done")
    return folder


@pytest.fixture
def clone(done):
    """`done`, as before the edits of other tests."""
    yield done
    pipeline.command(done, "git", "checkout", "--quiet", ".")
    pipeline.command(done, "git", "clean", "--force", "--quiet")


def stale(folder):
    """The stages that DVC would run; all variants of a stage together are `stage@*`."""
    pipeline.command(folder, "python", "-m", "stages.code")
    names = json.loads(pipeline.command(folder, "dvc", "status", "--json")).keys()
    variants = [path.stem for path in (folder / "fingerprints/distill").iterdir()]
    found = set(names)
    for stage in ("distill", "evaluate", "calibrate"):
        of_stage = {f"{stage}@{variant}" for variant in variants}
        if of_stage <= names:
            found = found - of_stage | {f"{stage}@*"}
    return found


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_nothing_is_stale_before_an_edit(clone):
    assert stale(clone) == set()


def test_comments_and_docstrings_make_only_code_stale(clone):
    for room in ("richkd", "stages"):
        for path in (clone / room).rglob("*.py"):
            text = path.read_text().replace('"""', '"""Added. ', 1)
            path.write_text(f"# Added.\n{text}# Added.\n")
    assert stale(clone) == {"code"}


def test_a_new_loss_makes_only_code_stale(clone):
    losses = clone / "richkd/losses"
    (losses / "new.py").write_text((losses / "sp.py").read_text().replace("def sp(", "def new("))
    replace(losses / "terms.py", '    "sp": ', '    "new": "features",\n    "sp": ')
    new = '@section\nclass New(Term):\n    """A new loss."""\n\n\n'
    replace(clone / "richkd/params/students.py", "@section\nclass Sp(", f"{new}@section\nclass Sp(")
    assert stale(clone) == {"code"}
    weights = {"teacher": "fused", "new": {"weight": 1.0}}
    pipeline.edit(clone, "distill.variants.with_new", weights)
    assert {"distill@with_new", "evaluate@with_new", "calibrate@with_new"} <= stale(clone)


def test_an_edited_loss_makes_its_variants_stale(clone):
    replace(clone / "richkd/losses/dkd.py", "return ", "return 2 * ")
    assert stale(clone) == {"code", "distill@with_dkd"}


def test_an_edited_default_of_an_option_makes_its_variants_stale(clone):
    replace(clone / "richkd/params/students.py", "le=10**6)] = 0", "le=10**6)] = 1")
    assert stale(clone) == {"code", "distill@*"}


@pytest.mark.parametrize(
    "module, stages",
    [
        ("models/resnet.py", NETWORKS),
        ("engine.py", NETWORKS),
        ("data/cifar.py", {"prepare"}),
        ("data/folder.py", {"prepare", "corrupt", "shift"}),
    ],
)
def test_an_edited_module_makes_the_stages_stale_that_use_it(clone, module, stages):
    path = clone / "richkd" / module
    path.write_text(f"{path.read_text()}\nADDED = 1\n")
    assert stale(clone) == {"code", *stages}
