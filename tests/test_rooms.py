"""Who imports whom: the table of rooms, ground first, held against the import statements.

A room may import from the rooms above its line here, never from one below. Imports in functions
count; those below `if TYPE_CHECKING:` do not, since they never run.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room: what it must not import though the order allows it.
ROOMS = {
    "richkd.base": [],
    "richkd.models": [],
    "richkd.losses": ["richkd.models"],
    "richkd.fingerprints": ["richkd.models", "richkd.losses"],
    "richkd.model_records": ["richkd.models", "richkd.losses"],
    "richkd.engine": ["richkd.losses"],
    "richkd.weights": ["richkd.losses"],
    "richkd.params": ["richkd.losses", "richkd.engine", "richkd.weights", "torch", "scipy"],
    "richkd.data": ["richkd.models", "richkd.losses"],
    "richkd.clip": ["richkd.losses"],
    "richkd.classifiers": ["richkd.losses"],
    "richkd.evaluate": ["richkd.models", "richkd.losses", "torch"],
    "richkd.teachers": ["richkd.losses"],
    "richkd.use": ["richkd.losses", "richkd.teachers"],
    "richkd.train": ["richkd.evaluate", "richkd.use"],
    "richkd.__main__": [],
    "stages": ["bench", "richkd.__main__"],
    "bench": ["stages", "richkd.__main__"],
}
FILES = {
    str(path.relative_to(ROOT)): path
    for name in ("richkd", "stages", "bench")
    for path in sorted((ROOT / name).rglob("*.py"))
    if path != ROOT / "richkd/__init__.py"
}


def room_of(module):
    """The room of ROOMS that a module, or a name in it, belongs to; None for other libraries."""
    words = module.split(".")
    room = ".".join(words[:2]) if words[0] == "richkd" else words[0]
    return room if room in ROOMS else None


def runs(node):
    """All nodes below, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from runs(child)


def imports(path):
    """(line, full name) of each import statement's parts: `a.b` for `from a import b`."""
    for node in runs(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(module, room):
    return f"{module}.".startswith(f"{room}.")


def test_every_module_has_its_room():
    assert [path for path in FILES if not room_of(path.removesuffix(".py").replace("/", "."))] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room):
    order = list(ROOMS)
    forbidden = [*ROOMS[room], *order[order.index(room) + 1 :]]
    assert [
        f"{path}:{line} imports {name}"
        for path in FILES
        if within(path.removesuffix(".py").replace("/", "."), room)
        for line, name in imports(path)
        if any(within(name, other) for other in forbidden)
    ] == []


def test_imports_name_the_whole_module():
    """So that the other tests here see them: no relative import, no room out of `import richkd`."""
    relative = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.level
        or isinstance(node, ast.Import)
        and any(alias.name == "richkd" for alias in node.names)
    ]
    assert relative == []


def test_stages_never_import_each_other():
    scripts = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("[!_]*.py")}
    assert [
        f"{path}:{line} imports {name}"
        for path in FILES
        if path.startswith("stages/")
        for line, name in imports(path)
        if any(within(name, script) for script in scripts)
    ] == []


@pytest.mark.parametrize("room", ["params", "evaluate", "fingerprints", "model_records"])
def test_light_rooms_load_no_torch(room):
    """Nor does what they import: every stage checks the params, and a report needs no network."""
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in FILES
        if path.startswith((f"richkd/{room}/", f"richkd/{room}."))
    ]
    heavy = {"torch", "scipy"} if room == "params" else {"torch"}
    script = f"import sys, {', '.join(modules)}; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
