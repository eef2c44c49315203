"""The commands that look at what is there: verify, report, methods, targets."""

from __future__ import annotations

import json as json_text
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from calib.declared import NOT_BLANK, Declared, Group
from calib.errors import UserError
from deploy.commands.declared_options import declared_options
from deploy.commands.options import NOT_MET, Result, Shared, command, printed, run_argument

if TYPE_CHECKING:  # the library is loaded only when a command runs
    from rich.console import Console

_NO_TERMINAL = 180
"""Columns of text of a pipe or a file."""


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    name: Annotated[str | None, Declared("the target to show", NOT_BLANK, "NAME")] = None
    sm: Annotated[
        tuple[str, ...],
        Declared("compute capability, as sm87; repeat for several", NOT_BLANK, "--sm", Group.WHERE),
    ] = ()


@command("verify")
@run_argument
@printed
def verify(run: Path, task: str | None, progress: Any) -> Result:
    """Run the evaluation data through PyTorch, ONNX and the engine, and name the stage that lost points. Writes
    verify.json.
    """
    from deploy.stages.making import verify as verify_stage
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run

    workspace = open_run(run, progress, task=task)
    record = verify_stage(workspace, read_policy(workspace))
    lines = []
    for name, stage in record.stages.items():
        part = f" on {stage.samples} of {record.samples} samples" if stage.samples != record.samples else ""
        said = f"not run: {stage.not_run}" if stage.mean is None else f"{stage.mean:.4f}{part}"
        lines.append(f"{name:>10}: {said}")
    return record, [*lines, record.explanation], 0


@command("report")
@declared_options(Shared, "run")
@printed
def report(run: Path, progress: Any) -> Result:
    """Write report.json and report.html from what the run holds. Exit code 1 when the budget is not met."""
    from deploy.report.page import summary_lines
    from deploy.stages.run_all import report_on

    record = report_on(run, progress)
    lines = [*summary_lines(record, run), "", f"report: {run / 'report.html'}"]
    return record, lines, 0 if record.met or not record.limits else NOT_MET


@command("methods")
@declared_options(Shared, "json")
def methods(json: bool) -> None:
    """List the methods that smpq run --method takes: what they do, the paper, what they need, and what they cost."""
    from deploy.commands.methods_table import described, table

    if json:
        click.echo(json_text.dumps(described(), indent=1))
    else:
        _console().print(table(), "Costs are counted in passes over the calibration data, besides calibration itself.")


@command("targets")
@declared_options(_Own)
@declared_options(Shared, "json")
def targets(name: str | None, sm: tuple[str, ...], json: bool) -> None:
    """List the targets, or show which format is real on which operator of one, and how we know.

    For example smpq targets jetson-orin, or smpq targets tensorrt-10.3 --sm sm87.
    """
    from deploy.targets.families import FAMILIES
    from deploy.targets.tables import LEGEND, described, overview, rules, summary
    from deploy.targets.target import device_names, target_from_name

    if sm and name is None:
        raise UserError("--sm needs the name of a target, as in: smpq targets tensorrt-10.3 --sm sm87")
    names = [name] if name is not None else [*FAMILIES, *device_names()]
    chosen = [target_from_name(each, sm, look=name is not None) for each in names]
    if json:
        click.echo(json_text.dumps({target.name: described(target) for target in chosen}, indent=1))
    elif name is None:
        _console().print(overview(), "smpq targets NAME shows what becomes of each format there, and how we know.")
    else:
        console = _console()
        console.print(summary(chosen[0], console.width), rules(chosen[0]), LEGEND)


def _console() -> Console:
    """Return where tables are printed: what is no terminal has room for whole rows, unless COLUMNS says otherwise."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_NO_TERMINAL)
