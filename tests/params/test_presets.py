"""The committed files of parameters, and the overrides of them that the documents show."""

import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

import richkd.__main__
from richkd import params

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
FILES = [ROOT / "params.yaml", *PRESETS]
RESULTS = (ROOT / "docs/results.md").read_text()
FOR_CIFAR100, FOR_CIFAR100_CPU = RESULTS.split("\n## cifar100-cpu\n")


def commands(text):
    """The overrides of each command, what stands after its -S."""
    lines = text.splitlines()
    return [shlex.split(line)[4::2] for line in lines if line.startswith("    dvc exp run -S")]


COMMANDS = commands(FOR_CIFAR100)
LOSSES = [command for command in COMMANDS if "+distill" in command[-1]]
PAIRS = [command for command in COMMANDS if command not in LOSSES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_files_load(path):
    sections = yaml.safe_load(path.read_text())
    assert params.to_dict(params.load(*sections, path=path)) == sections
    params.check_networks(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reader_of_a_committed_file_learns_of_every_term(path):
    comments = path.read_text().partition("\ndistill:\n")[2].partition("  variants:\n")[0]
    words = set(comments.replace(",", " ").replace(".", " ").split())
    assert {kind.__name__.lower() for kind in params.Term.__subclasses__()} <= words


def test_params_yaml_is_the_preset_digits():
    assert FILES[0].read_text() == (ROOT / "presets/digits.yaml").read_text()


def override(path, words, preset="cifar100"):
    """`dvc exp run -S …` for each of `words`, on the preset."""
    path.write_text((ROOT / f"presets/{preset}.yaml").read_text())
    apply_overrides(path, words)


@pytest.mark.parametrize("words", PAIRS, ids=" ".join)
def test_the_overrides_for_every_published_pair_fit_the_preset(file, words):
    override(file.path, words)
    student = file.load("student").student
    slow = student.arch.startswith(("mobilenet", "shufflenet"))
    assert student.lr == (0.01 if slow else 0.05)


def test_the_overrides_of_the_measured_run_fit_cifar100_cpu(file):
    first, second = commands(FOR_CIFAR100_CPU)
    override(file.path, [*first, *second], "cifar100-cpu")
    found = file.load("student", "distill", "fusion")
    assert (found.student.epochs, found.distill.seeds) == (10, (0, 1, 2, 3))
    assert found.fusion.align == "temperature"


def test_the_ten_other_pairs_are_there():
    given = [dict(word.split("=") for word in words) for words in PAIRS]
    pairs = {(pair.get("teacher.arch", "resnet32x4"), pair["student.arch"]) for pair in given}
    assert len(pairs) == 10
    assert all(f"| {teacher} → {student} |" in RESULTS for teacher, student in pairs)


PUBLISHED = {
    "dkd": {"weight": 1, "alpha": 1, "beta": 8, "temperature": 4, "warm_up": 20},
    "standardized": {"weight": 9, "temperature": 2, "standardize": True},
    "mlkd": {"weight": 0.9, "temperatures": [2, 3, 4, 5, 6]},
    "dist": {"weight": 1, "beta": 2, "gamma": 2, "temperature": 4},
    "rkd": {"weight": 1, "distance_weight": 25, "angle_weight": 50},
    "sp": {"weight": 3000},
    "pkt": {"weight": 30000},
    "crd": {
        "weight": 0.8, "dim": 128, "num_negatives": 16384, "negatives": "auto",
        "temperature": 0.07, "momentum": 0.5,
    },
    "at": {"weight": 1000, "p": 2},
    "nst": {"weight": 50},
}  # fmt: skip


@pytest.mark.parametrize("words", LOSSES, ids=lambda words: words[-1].split("=")[0])
def test_the_overrides_for_every_loss_add_its_published_options(file, words):
    override(file.path, words)
    name = words[-1].split("=")[0].removeprefix("+distill.variants.")
    variant = getattr(file.load(f"distill.variants.{name}").distill.variants, name)
    term = {"standardized": "kd"}.get(name, name)
    assert variant.teacher == "teacher"
    assert list(variant.terms) == ["ce", term]
    assert params.to_dict(variant.terms[term]) == PUBLISHED[name]


def test_every_loss_has_an_override():
    named = [words[-1].split("=")[0].removeprefix("+distill.variants.") for words in LOSSES]
    assert named == list(PUBLISHED)


def test_an_override_of_one_number_changes_no_other(file):
    before = params.to_dict(params.load("distill", path=ROOT / "params.yaml"))
    override(file.path, ["distill.variants.LF.crd.weight=0.5"], preset="digits")
    after = params.to_dict(file.load("distill"))
    assert after["distill"]["variants"]["LF"]["crd"].pop("weight") == 0.5
    before["distill"]["variants"]["LF"]["crd"].pop("weight")
    assert after == before


def test_an_override_matches_kd_to_the_weights_of_L(file):
    (line,) = [
        " ".join(part.split())
        for part in RESULTS.split("`")
        if part.startswith("-S distill.variants.kd.ce")
    ]
    override(file.path, shlex.split(line)[1::2])
    variants = params.to_dict(file.load("distill.variants"))["distill"]["variants"]
    assert variants["kd"] == variants["L"] | {"teacher": "teacher"}


def test_an_override_removes_a_variant(file):
    override(file.path, ["~distill.variants.L"], preset="digits")
    assert list(file.load("distill.variants").distill.variants) == ["kd", "F", "LF"]


@pytest.mark.parametrize(
    ("file_", "teacher", "student"),
    [
        ("imagenet-r34-r18", "resnet34", "torchvision/resnet18"),
        ("imagenet-r50-mv1", "resnet50", "mobilenetv1"),
    ],
)
def test_imagenet_is_trained_on_as_the_papers_do(file_, teacher, student):
    p = params.load("dataset", "views", "teacher", "student", path=ROOT / f"presets/{file_}.yaml")
    assert (p.teacher.arch, p.teacher.weights) == (teacher, "IMAGENET1K_V1")
    assert params.to_dict(p.student) == {
        "arch": student, "epochs": 100, "batch_size": 512, "lr": 0.2, "schedule": "step",
        "milestones": [30, 60, 90], "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip
    assert params.to_dict(p.views) == {
        "augmentation": "resized_crop", "size": 224, "resize": 256, "scale": [0.08, 1.0],
        "ratio": [3 / 4, 4 / 3], "flip": True,
    }  # fmt: skip
    assert (p.dataset.expect_train, p.dataset.expect_val) == (1_281_167, 50_000)
    assert (p.dataset.train_per_class, p.dataset.validation) == ("all", 0)


def preset(folder, monkeypatch, name):
    """`python -m richkd preset NAME` in `folder`, which has presets/NAME.yaml."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["richkd", "preset", name])
    richkd.__main__.main()


def test_preset_replaces_params_yaml(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "params.yaml").write_text("old")
    preset(tmp_path, monkeypatch, "smoke")
    assert (tmp_path / "params.yaml").read_text() == (ROOT / "presets/smoke.yaml").read_text()
    assert capsys.readouterr().out == "params.yaml is now presets/smoke.yaml\n"


def test_a_preset_with_a_mistake_leaves_params_yaml_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.yaml").write_text("fussion: {}\n")
    (tmp_path / "params.yaml").write_text("old")
    with pytest.raises(SystemExit, match="^error: presets/mine.yaml: fussion is not a parameter"):
        preset(tmp_path, monkeypatch, "mine")
    assert (tmp_path / "params.yaml").read_text() == "old"


def test_an_unknown_preset_is_answered_with_the_known_ones(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    with pytest.raises(SystemExit):
        preset(tmp_path, monkeypatch, "cifar")
    said = capsys.readouterr().err
    assert all(path.stem in said for path in PRESETS)
