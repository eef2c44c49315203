"""Nothing asks which method, runtime, estimator or number type it is: what differs is a field or a method."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from calib.formats.number_type import NUMBER_TYPES
from calib.observers import OBSERVERS
from calib.rounding import ROUNDINGS
from deploy.backends import BACKENDS
from deploy.runner.bench import OPENERS
from deploy.targets.families import FAMILIES
from deploy.targets.target import device_names, versioned_names
from smpq.methods import METHODS
from smpq.scoring.estimators import ESTIMATORS
from tests.conftest import ROOT

KINDS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "methods": (set(METHODS), ("smpq/methods/",)),
    "runtimes": (
        {*BACKENDS, *FAMILIES, *OPENERS, *versioned_names(), *device_names()},
        ("deploy/backends/", "deploy/runner/bench.py"),
    ),
    "estimators": (set(ESTIMATORS), ("smpq/scoring/estimators/",)),
    "roundings": (set(ROUNDINGS), ("calib/rounding/",)),
    "observers": (set(OBSERVERS), ("calib/observers.py",)),
    "number types": (set(NUMBER_TYPES), ("calib/formats/",)),
}
"""Names, and the places that own them."""
_PREFIXES = {"startswith", "endswith", "removeprefix", "removesuffix"}


def strings(node: ast.AST) -> Iterator[str]:
    for leaf in ast.walk(node):
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
            yield leaf.value


def compared(source: str) -> set[str]:
    """Every text that something is compared with, looked for in, matched against, or dispatched on by a dictionary."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PREFIXES:
            parts = [*node.args]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            parts = [key for key in node.value.keys if key is not None]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and isinstance(node.func.value, ast.Dict)
        ):
            parts = [key for key in node.func.value.keys if key is not None]
        found |= {text for part in parts for text in strings(part)}
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, set[str]]:
    files = [ROOT / "cli.py", *(path for room in ("calib", "smpq", "deploy") for path in (ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    return {path.relative_to(ROOT).as_posix(): compared(path.read_text()) for path in files}


def test_what_counts_as_a_comparison():
    assert compared("if x in ('a', y) or x != 'b': ...\nmatch x:\n case 'c' | 'd': ...") == {"a", "b", "c", "d"}
    assert compared("x.startswith('e-')\n{'f': 1, **z}[x]\n{'g': 1}.get(x)") == {"e-", "f", "g"}
    assert compared("f(x='h')\nx = {'i': 1}") == set()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_compares_names(kind: str, sources: dict[str, set[str]]):
    names, owners = KINDS[kind]
    assert names
    comparing = {
        path: sorted(texts & names) for path, texts in sources.items() if not path.startswith(owners) and texts & names
    }
    assert comparing == {}


def test_the_owners_are_there():
    assert all(Path(ROOT, owner).exists() for _, owners in KINDS.values() for owner in owners)
