"""The options and arguments that commands share, and what every command does with its result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click

from calib.declared import NOT_BLANK, APath, Declared, Group, Interval, Parsed
from calib.errors import UserError
from calib.files.storage import json_text
from deploy.commands.declared_options import GroupedCommand, declared_options, settings_from_options
from deploy.commands.internal_error import InternalError, foreseen
from deploy.run.settings import LARGEST_BATCH
from smpq.problem.budget import Budget
from smpq.value.workers.resources import Resources

NOT_MET = 1
"""The exit code of a command that ends without an engine that meets the budget."""
WRONG_INPUT = 2
Result = tuple[Any, list[str], int]
"""What a command returns: the record for `--json`, the lines for people, and the exit code."""
Returned = TypeVar("Returned")
LIMITS = Parsed(Budget.from_text, "limits on latency, throughput, size, avg_bits, bops, drop or kl")


@dataclass(frozen=True)
class Shared:
    """What commands take that no settings class holds."""

    run: Annotated[Path, Declared("the run directory", APath(), "RUN")]
    directory: Annotated[Path, Declared("where the bundle is written", APath(), "DIRECTORY")]
    measurements: Annotated[Path, Declared("what a bundle has measured", APath(), "MEASUREMENTS")]
    out: Annotated[Path, Declared("the run directory; a run that is there goes on", APath(), "--out", Group.WHAT)]
    budget: Annotated[
        str,
        Declared(
            "limits, e.g. latency=0.65x or size=0.2x,avg_bits=3.5 or drop=0.5; x is a fraction of the float model",
            LIMITS,
            "--budget",
            Group.WHAT,
        ),
    ]
    next_budget: Annotated[
        str | None,
        Declared(
            "limits with a latency, e.g. latency=0.7x (see smpq run)",
            LIMITS,
            "--budget",
            Group.WHAT,
            unset="those of the last bundle",
        ),
    ] = None
    known_task: Annotated[
        str | None,
        Declared(
            "the run's task, if it is code and the run was made by others or elsewhere", NOT_BLANK, "--task", Group.WHAT
        ),
    ] = None
    batches: Annotated[
        tuple[int, ...],
        Declared("a further batch size to time; repeat for several", Interval(1, LARGEST_BATCH), "--batch", Group.WHAT),
    ] = ()
    device: Annotated[
        str,
        Declared(
            "machine that times engines: ssh://user@host[:port]; see docs/jetson.md",
            option="--device",
            group=Group.WHERE,
            unset="this one",
        ),
    ] = ""
    json: Annotated[
        bool,
        Declared(
            "print the result as JSON on standard output, and nothing else there", option="--json", group=Group.OUTPUT
        ),
    ] = False
    quiet: Annotated[bool, Declared("no progress on standard error", option="--quiet", group=Group.OUTPUT)] = False


def printed(command: Callable[..., Result]) -> Callable[..., None]:
    """Give a command `--json` and `--quiet`, print its result and end with its exit code. Passed on as `progress`.

    The library is loaded only when a command really runs: `--help` stays quick.
    """

    @declared_options(Shared, "json", "quiet")
    @wraps(command)
    def wrapped(*args: Any, json: bool, quiet: bool, **kwargs: Any) -> None:
        from rich.console import Console

        from deploy.terminal.progress import Progress

        progress = Progress(Console(stderr=True, quiet=quiet))
        try:
            result, lines, code = command(*args, progress=progress, **kwargs)
        except (UserError, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            known = foreseen(error)
            raise known or InternalError(error, kwargs.get("out") or kwargs.get("run")) from error
        if json:
            click.echo(json_text(result), nl=False)
        else:
            for line in lines:
                click.echo(line)
        if code:
            sys.exit(code)

    return wrapped


def resource_options(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """Options that say what a run is computed with; they may change from command to command. Passed on as
    `resources`.
    """

    @declared_options(Resources)
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Returned:
        resources = settings_from_options(Resources, options)
        return command(*args, resources=resources, **options)

    return wrapped


def run_argument(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """The run directory, and the task that it may load. Passed on as `run` and `task`."""
    return declared_options(Shared, "run", "known_task")(command)


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command whose help shows options in groups."""
    return click.command(name, cls=GroupedCommand)
