"""One file with one decorator is a method everywhere; and nothing outside `smpq/methods` asks which method it is."""

from __future__ import annotations

import ast
import importlib
import json
import sys

import pytest

from smpq.methods import DEFAULT_METHOD, METHODS
from tests.commands import assert_matches, done
from tests.conftest import ROOT

TASK = ("--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16", "--effort", "fast", "--quiet")


@pytest.fixture
def added():
    importlib.import_module("tests.smpq.methods.thrown_away")
    yield "alphabetical"
    del METHODS["alphabetical"], sys.modules["tests.smpq.methods.thrown_away"]


def test_a_method_from_a_file_of_its_own_does_the_whole_job(added, tmp_path):
    run = tmp_path / "run"
    assert json.loads(done("methods", "--json").out)[added]["summary"] == "Layers late in the alphabet matter more."
    assert added in done("methods").out
    done("run", *TASK, "--method", added, "--budget", "latency=50x,size=0.9x", "--out", run)
    scores, report = json.loads((run / "scores.json").read_text()), json.loads((run / "report.json").read_text())
    assert (scores["method"], scores["estimator"]) == (added, "alphabet")
    assert report["scores"]["method"] == added
    assert report["met"]
    assert json.loads((run / "loop.json").read_text())["runs"] if "runs" in (run / "loop.json").read_text() else True
    assert f"{added} (alphabet)" in (run / "report.html").read_text()
    assert_matches("alphabet", done("solve", run, "--budget", "size=0.8x").out + json.dumps(scores))


def test_a_run_of_a_method_that_is_not_there_any_more(added, tmp_path):
    run = tmp_path / "run"
    done("score", *TASK, "--target", "simulate", "--method", added, "--out", run)
    kept = METHODS.pop(added)
    from tests.commands import refused

    assert_matches(
        r"scores\.json: unknown method 'alphabetical': choose one of shapley", refused("solve", run, "--budget", "size=0.9x")
    )
    METHODS[added] = kept


def _compared_strings(source: str) -> set[str]:
    """Every text that an expression is compared with, or that selects a case."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        if isinstance(node, ast.MatchValue):
            parts = [node.value]
        found |= {
            leaf.value
            for part in parts
            for leaf in ast.walk(part)
            if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
        }
    return found


def test_nothing_outside_compares_with_the_name_of_a_method():
    assert _compared_strings("if x in ('hawq', y):\n  pass") == {"hawq"}
    files = [ROOT / "cli.py", *(path for room in ("calib", "smpq", "deploy") for path in (ROOT / room).rglob("*.py"))]
    files = [path for path in files if path.parent != ROOT / "smpq" / "methods"]
    assert len(files) > 100
    comparing = {str(path.relative_to(ROOT)): _compared_strings(path.read_text()) & METHODS.keys() for path in files}
    assert {path: names for path, names in comparing.items() if names} == {}


def test_help_lists_the_methods():
    for command in ("run", "score"):
        text = " ".join(done(command, "--help").out.split())
        assert all(name in text for name in METHODS), command
    assert f"default: {DEFAULT_METHOD}" in text.replace("; required", "") or DEFAULT_METHOD in text
