"""What the design asks of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

MOST_LINES = 300
OPEN_RUN = ("deploy/run", "deploy/stages", "deploy/commands", "deploy/python")
"""Where a function may take the whole open run."""


def sources() -> Iterator[tuple[str, str]]:
    """Every Python file of the repository with its text, the documentation's hooks aside."""
    for place in ("calib", "smpq", "deploy", "tests", "benchmarks", "examples"):
        for file in sorted((ROOT / place).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    yield "cli.py", (ROOT / "cli.py").read_text(encoding="utf-8")


def takes_workspace(text: str) -> list[str]:
    """The functions of a file with a parameter of type Workspace."""
    functions = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    found = []
    for function in functions:
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        annotations = [each.annotation for each in every if each is not None and each.annotation is not None]
        names = {
            getattr(node, "id", getattr(node, "attr", getattr(node, "value", None)))
            for annotation in annotations
            for node in ast.walk(annotation)
        }
        if "Workspace" in names:
            found.append(function.name)
    return found


def test_a_workspace_is_seen_in_every_form():
    text = (
        "def f(w: Workspace): ...\ndef g(w: 'Workspace'): ...\ndef h(*, w: x.Workspace | None): ...\n"
        "def i(w: Space): ..."
    )
    assert takes_workspace(text) == ["f", "g", "h"]


def test_only_the_run_the_stages_and_the_commands_take_the_whole_workspace():
    product = [(name, text) for name, text in sources() if Path(name).parts[0] in ("calib", "smpq", "deploy")]
    found = {name: takes_workspace(text) for name, text in product if not name.startswith(OPEN_RUN)}
    assert {name: functions for name, functions in found.items() if functions} == {}
    assert any(takes_workspace(text) for name, text in product if name.startswith(OPEN_RUN))


def test_no_file_is_longer_than_a_reader_takes_in():
    lengths = {name: text.count("\n") for name, text in sources()}
    assert [name for name, lines in lengths.items() if lines > MOST_LINES] == []
