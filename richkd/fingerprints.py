"""Fingerprints of code: one hash for each module that a stage's results can depend on.

A comment, a docstring, a blank line or the order of imports changes no fingerprint. Imports count
wherever they stand in a file, in functions too, but not below `if TYPE_CHECKING:`.

Two packages choose their modules by name. `richkd.models` counts whole. Of `richkd.losses` a
variant counts the modules of its own terms with what these import, and `terms.py` without the
entries of other losses: so a new loss leaves all fingerprints as they are.

An edit of these files changes no result, so they are left out:
- `richkd/params`: DVC compares the values themselves, and `stages.code` writes down the options of
  each term. (Of another key that params.yaml may leave out, an edited default is not noticed.)
- of `richkd/base`: files, errors, downloads that a checksum names, the going on of a killed stage,
  the choice of a device;
- `stages/__init__.py`: it starts a stage;
- `richkd/__init__.py` and `richkd/losses/__init__.py`: they give functions a second name.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

MODELS = "richkd/models/"
LOSSES = "richkd/losses/"
TERMS = "richkd/losses/terms.py"
LEFT_OUT = (
    "richkd/__init__.py",
    "richkd/params/",
    *(
        f"richkd/base/{name}.py"
        for name in ("files", "errors", "download", "kept", "resume", "devices")
    ),
    "stages/__init__.py",
    "richkd/losses/__init__.py",
)


def code_fingerprints(
    script: str, terms: Collection[str] = (), root: Path = Path()
) -> dict[str, str]:
    """{path: hash} of `script` and of all modules of ours that it reaches by import.

    Paths are relative to the project's folder `root` and sorted; a module without code is left out.
    `terms` are the losses that the stage uses. OSError where one of them has no file.
    """
    found: dict[str, str] = {}
    ahead = [script]
    while ahead:
        path = ahead.pop()
        if path in found or path.startswith(LEFT_OUT):
            continue
        own_terms = frozenset(terms if path == TERMS else ())
        found[path], modules = read_module(path, (root / path).read_text(), own_terms)
        for file in (file for module in modules for file in files_of(module, root)):
            if file.startswith(MODELS):
                ahead += (str(each.relative_to(root)) for each in root.glob(f"{MODELS}**/*.py"))
            elif file.startswith(LOSSES) and not path.startswith(LOSSES):
                ahead += [TERMS, *(f"{LOSSES}{term}.py" for term in terms if term != "ce")]
            else:
                ahead.append(file)
    return {path: digest for path, digest in sorted(found.items()) if digest}


def files_of(module: str, root: Path) -> Iterator[str]:
    """The files of ours that `import module` runs: the packages around the module, then itself."""
    words = module.split(".")
    for end in range(1, len(words) + 1) if words[0] in ("richkd", "stages") else ():
        place = "/".join(words[:end])
        for file in (f"{place}/__init__.py", f"{place}.py"):
            if (root / file).is_file():
                yield file


@cache
def read_module(path: str, source: str, terms: frozenset[str]) -> tuple[str, list[str]]:
    """The hash of a module's code, empty where it has none, and the names that it imports."""
    tree = Code().visit(ast.parse(source, path))
    if path == TERMS:
        keep_entries(tree, terms)
    digest = hashlib.sha256(repr(plain(tree)).encode()).hexdigest()[:16]
    return digest if tree.body else "", list(imported_names(tree, path))


class Code(ast.NodeTransformer):
    """Takes out docstrings and what only type checkers read; makes one statement of each import."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        lone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if lone else node

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        self.generic_visit(node)
        types_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        return node.orelse if types_only else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        # Python 3.12 ends some f-strings with an empty text, 3.11 does not.
        self.generic_visit(node)
        node.values = [x for x in node.values if not isinstance(x, ast.Constant) or x.value]
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.Import]:
        return [ast.Import([alias]) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.ImportFrom]:
        return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]


def keep_entries(tree: ast.Module, terms: Collection[str]) -> None:
    """Take the entries of all other terms out of the module's dict TERMS."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == "TERMS":
                keys, values = node.value.keys, node.value.values
                for i, key in reversed(list(enumerate(keys))):
                    if isinstance(key, ast.Constant) and key.value not in terms:
                        del keys[i], values[i]


def plain(node: Any) -> Any:
    """A syntax tree as nested lists, alike in all Python versions; imports in a row are sorted."""
    if isinstance(node, ast.AST):
        filled = [(name, x) for name, x in ast.iter_fields(node) if x is not None and x != []]
        return [type(node).__name__, *([name, plain(x)] for name, x in filled)]
    if isinstance(node, list):
        rows = groupby(node, lambda each: isinstance(each, ast.Import | ast.ImportFrom))
        sort = {True: lambda row: sorted(row, key=repr), False: list}
        return [x for imports, row in rows for x in sort[imports](map(plain, row))]
    return repr(node)


def imported_names(tree: ast.AST, path: str) -> Iterator[str]:
    """What a module imports, by its full name: `a.b` for `from a import b`, a module or not."""
    package = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            words = [*above, *filter(None, [node.module])]
            yield from (".".join([*words, alias.name]) for alias in node.names)
