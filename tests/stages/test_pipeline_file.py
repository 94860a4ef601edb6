"""dvc.yaml agrees with the scripts: the params they load, the fingerprints they follow from."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WHOLE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
FILE = WHOLE["stages"]
# A stage with `foreach` or `matrix` stands for many: what follows holds for each of them.
STAGES = {name: stage.get("do", stage) for name, stage in FILE.items()}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
SCRIPTS = {path.stem for path in (ROOT / "stages").glob("[!_]*.py")}


def script(name):
    """`distill` for the stage that runs `python -m stages.distill`."""
    (module,) = re.findall(r"python -m stages\.(\w+)", STAGES[name]["cmd"])
    return module


def loaded(name):
    """The keys that the script gives to params.load; a value put into one is `{}`."""
    keys = set()
    for node in ast.walk(ast.parse((ROOT / f"stages/{script(name)}.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load":
            for key in node.args:
                parts = key.values if isinstance(key, ast.JoinedStr) else [key]
                keys.add("".join(x.value if isinstance(x, ast.Constant) else "{}" for x in parts))
    return keys


def one_by_one(keys):
    """A whole section as its keys: declaring `clip` and loading all of it in parts is the same."""
    return {
        f"{key}.{name}" if isinstance(PARAMS.get(key), dict) else key
        for key in keys
        for name in PARAMS.get(key) or [key]
    }


def test_every_script_is_a_stage():
    assert {script(name) for name in STAGES} == SCRIPTS


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"code"}))
def test_params_are_those_that_the_script_loads(name):
    declared = [re.sub(r"\$\{.*?\}", "{}", key) for key in STAGES[name].get("params", [])]
    assert len(declared) == len(set(declared))
    assert one_by_one(declared) == one_by_one(loaded(name))


@pytest.mark.parametrize("name", STAGES)
def test_no_dep_stands_twice(name):
    assert len(STAGES[name]["deps"]) == len(set(STAGES[name]["deps"]))


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"code"}))
def test_a_stage_follows_from_the_fingerprints_of_its_own_script(name):
    """As `stages.code` writes them: a file for each script, for `distill` one for each variant."""
    of_script = script(name)
    if of_script == "distill":
        assert FILE[name]["foreach"] == "${distill.variants}"
        of_script = "distill/${key}"
    deps = [dep for dep in STAGES[name]["deps"] if dep.startswith("fingerprints")]
    assert deps == [f"fingerprints/{of_script}.json"]


def test_code_depends_on_all_that_it_reads():
    assert set(STAGES["code"]["deps"]) == {"params.yaml", "richkd", "stages"}
    assert [*STAGES["code"]["outs"][0]] == ["fingerprints"]


def test_other_files_beside_the_code_are_deps_of_the_stages_that_read_them():
    """Their content is in no fingerprint."""
    others = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "richkd").rglob("*.*")
        if path.suffix not in (".py", ".pyc")
    }
    deps = {dep for stage in STAGES.values() for dep in stage["deps"]}
    assert others == {dep for dep in deps if dep.startswith("richkd/")}


def test_the_headline_is_the_one_metric():
    """`dvc metrics diff` and `dvc exp show` show all that is declared as a metric."""
    metrics = {name: stage["metrics"] for name, stage in STAGES.items() if "metrics" in stage}
    assert metrics == {"report": [{"metrics/summary.json": {"cache": False}}]}


@pytest.mark.parametrize("name", STAGES)
def test_files_in_git_leave_the_run_cache_on(name):
    """DVC switches the run cache off for a stage that has `outs` with `cache: false`."""
    plots = [{x: {}} if isinstance(x, str) else x for x in STAGES[name].get("plots", [])]
    for path, options in (item for plot in plots for item in plot.items()):
        assert path.startswith("metrics/") and options.pop("cache") is False
        # A table without axes would be drawn over its row numbers; a JSON is not drawn.
        assert options.keys() >= {"x", "y"} if path.endswith(".csv") else not options
    if name != "code":  # takes milliseconds, and its files stay where a parameter is wrong
        assert all(isinstance(out, str) for out in STAGES[name].get("outs", []))


def test_the_teacher_and_all_students_of_the_default_params_are_artifacts():
    """The entries are written by hand, since DVC has no `foreach` for artifacts."""
    students = ["ce", *PARAMS["distill"]["variants"]]
    paths = {"teacher": "models/teacher"} | {f"student-{x}": f"models/{x}" for x in students}
    artifacts = WHOLE["artifacts"]
    assert {name: artifact["path"] for name, artifact in artifacts.items()} == paths
    assert {artifact["type"] for artifact in artifacts.values()} == {"model"}
    assert all(artifact["desc"] for artifact in artifacts.values())
