"""Run the command line in this process, and keep runs apart."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from rich.console import Console

import cli
from deploy.run.directory import Run
from deploy.run.trust import remember
from deploy.terminal.progress import Progress

TINY = ("--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def smpq(*arguments: object) -> Result:
    """Call the entry point as the installed command would; whatever it raises but an exit fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch("sys.argv", ["smpq", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
    return Result(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Result:
    """Call a command that must succeed."""
    result = smpq(*arguments)
    assert result.code == 0, result.err
    return result


def copy_of(run: Path, to: Path) -> Path:
    """Copy a run, as if it had been made there: a task is not loaded for a run that comes from elsewhere."""
    shutil.copytree(run, to)
    remember(to, Run(to).settings(), Progress(Console(quiet=True)))
    return to


def contents(run: Path, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of a run with its bytes."""
    return {
        path.name: path.read_bytes() for path in sorted(run.iterdir()) if path.is_file() and path.name not in without
    }


def refused(*arguments: object) -> str:
    """Call a command that must be refused; returns its message."""
    result = smpq(*arguments)
    assert result.code == 2, (result.code, result.out, result.err)
    assert result.out == ""
    (message,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.err.strip().endswith(message), "the message comes last"
    assert "Traceback" not in result.err
    return message


def assert_matches(pattern: str, message: str) -> None:
    assert re.search(pattern, message), message


def filled(arguments: Sequence[object], **places: object) -> list[str]:
    return [str(argument).format(**places) for argument in arguments]
