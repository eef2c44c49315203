"""What runs on a device imports the standard library, numpy and its own modules; a runtime only where it is used."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import deploy.runner

DIRECTORY = Path(deploy.runner.__file__).parent


@pytest.mark.parametrize("file", sorted(DIRECTORY.glob("*.py")), ids=lambda file: file.stem)
def test_imports(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_the_top = {name for node in tree.body for name in imported(node)}
    anywhere = {name for node in ast.walk(tree) for name in imported(node)}
    allowed = {name for name in anywhere if name.split(".")[0] in {*sys.stdlib_module_names, "numpy"}}
    allowed |= {name for name in anywhere if name.startswith("deploy.runner")}
    assert at_the_top <= allowed
    assert anywhere <= allowed | {"onnxruntime"}


@pytest.mark.parametrize("file", sorted(DIRECTORY.glob("*.py")), ids=lambda file: file.stem)
def test_numpy_1_21_has_what_is_asked_of_it(file):
    """Ubuntu 22.04, and JetPack 6 with it, has no newer one: there `quantile` and `percentile` know no `method`."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [ast.unparse(call) for call in calls if any(each.arg == "method" for each in call.keywords)]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []
