"""The table of losses: complete, readable without importing, and leading to the functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from richkd import losses
from richkd.losses.terms import TERMS, loss_function

FOLDER = Path(losses.__file__).parent
NO_LOSSES = {"__init__", "check", "standardize", "terms"}


def test_every_loss_is_in_the_table():
    assert sorted(TERMS) == sorted({path.stem for path in FOLDER.glob("*.py")} - NO_LOSSES)
    assert set(TERMS.values()) == {
        "logits", "logits and labels", "logits of the batch", "features", "maps", "memory"
    }  # fmt: skip


def test_the_table_is_a_literal_in_the_syntax_tree():
    (table,) = (
        node.value
        for node in ast.parse((FOLDER / "terms.py").read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TERMS"
    )
    assert ast.literal_eval(table) == TERMS


def test_the_table_needs_no_torch():
    code = f"import runpy, sys; runpy.run_path({str(FOLDER / 'terms.py')!r}); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", [name for name in TERMS if name != "crd"])
def test_a_loss_is_found_by_its_name(name):
    assert loss_function(name) is getattr(losses, name)
