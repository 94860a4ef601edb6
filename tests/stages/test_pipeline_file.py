"""dvc.yaml declares what the stages' code reads: params by their keys, deps by its imports."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
# They read params, write files, fetch what a checksum tells, resume and pick a device: an edit there
# cannot change a result.
PLUMBING = {
    f"richkd/{name}.py"
    for name in ("params", "explain", "files", "errors", "download", "resume", "devices")
}
# Imported inside a function, by richkd.weights.
LAZY = {"cache": {"richkd/clip.py"}, "evaluate": {"richkd/clip.py"}}


def script(name):
    (module,) = re.findall(r"python -m (stages\.\w+)", STAGES[name]["cmd"])
    return module.replace(".", "/") + ".py"


def parse(path):
    return ast.parse((ROOT / path).read_text())


def source(module):
    """The file of a module of ours, `richkd/models` for all in that package, or None."""
    if module.split(".")[:2] == ["richkd", "models"]:
        return "richkd/models"
    path = f"{module.replace('.', '/')}.py"
    return path if module.startswith("richkd.") and (ROOT / path).exists() else None


def imports(path):
    """What the file imports of ours when it is itself imported."""
    found = set()
    for node in parse(path).body:
        if isinstance(node, ast.Import):
            found |= {source(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from richkd import x` names a module, `from richkd.x import f` holds one.
            found |= {source(node.module)}
            found |= {source(f"{node.module}.{alias.name}") for alias in node.names}
    return found - {None}


def reached(path):
    found, ahead = set(), [path]
    while ahead:
        new = imports(ahead.pop()) - PLUMBING - found
        found |= new
        ahead += [path for path in new if path.endswith(".py")]
    return found


def loaded(name):
    """The keys that the stage's script gives to params.load; {x} in one is the matrix's item.x."""
    keys = set()
    for node in ast.walk(parse(script(name))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load":
            for key in node.args:
                if isinstance(key, ast.JoinedStr):
                    (variable,) = STAGES[name]["matrix"]
                    parts = [getattr(part, "value", None) for part in key.values]
                    item = f"${{item.{variable}}}"
                    keys.add("".join(part if isinstance(part, str) else item for part in parts))
                else:
                    keys.add(ast.literal_eval(key))
    return keys


def one_by_one(keys):
    """A whole section as its keys: declaring `clip` and loading all of it in parts is the same."""
    return {
        f"{key}.{name}" if isinstance(PARAMS.get(key), dict) else key
        for key in keys
        for name in PARAMS.get(key, [key])
    }


@pytest.mark.parametrize("name", STAGES)
def test_params_are_those_that_the_script_loads(name):
    declared = STAGES[name].get("params", [])
    assert len(declared) == len(set(declared))
    assert one_by_one(declared) == one_by_one(loaded(name))


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_that_the_script_imports(name):
    deps = STAGES[name]["deps"]
    ours = {dep for dep in deps if dep.startswith(("richkd", "stages"))}
    code = {script(name)} | reached(script(name)) | LAZY.get(name, set())
    assert len(deps) == len(set(deps))
    assert {dep for dep in ours if dep.endswith(".py") or dep == "richkd/models"} == code
    # Other files beside the code, such as templates, are read by their names.
    texts = [(ROOT / path).read_text() for path in code if path.endswith(".py")]
    assert all(any(Path(dep).name in text for text in texts) for dep in ours - code)


def test_every_script_is_a_stage():
    scripts = {f"stages/{path.name}" for path in (ROOT / "stages").glob("[!_]*.py")}
    assert scripts == {script(name) for name in STAGES}


def test_the_package_around_the_stages_imports_nothing_that_counts():
    assert imports("stages/__init__.py") <= PLUMBING
    assert not imports("richkd/__init__.py")
    assert all(imports(path) <= PLUMBING for path in PLUMBING - {"richkd/params.py"})
