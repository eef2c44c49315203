"""The options and arguments that commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from rich.console import Console

from calib.errors import UserError
from calib.files.storage import json_text
from deploy.commands.internal_error import InternalError, foreseen
from deploy.commands.numbers import BATCH, DECIMAL, PLACE, SEED, WHOLE, WORKERS


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what is searched; a run keeps them."""
    options = [
        click.option(
            "--task", "task", required=True, help="digits, cifar10-resnet20, or your own as package.module:object"
        ),
        click.option("--data", type=PLACE, help="the data the task needs (a directory)"),
        click.option("--weights", type=PLACE, help="the weights the task needs (.safetensors or a state_dict)"),
        click.option("--out", type=PLACE, required=True, help="the run directory; a run that is there goes on"),
        click.option(
            "--target",
            default="ort-cpu",
            show_default=True,
            help="ort-cpu, tensorrt-rtx, jetson-orin, ... (smpq targets lists them)",
        ),
        click.option(
            "--sm",
            "compute_capabilities",
            multiple=True,
            help="compute capability to build for, as sm86; repeat for several",
        ),
        click.option(
            "--formats", default="", help="formats to choose from, e.g. w8a8,w4a16b128,fp32  [default: the target's]"
        ),
        click.option(
            "--size-only", is_flag=True, help="also offer formats that are stored small but computed in float"
        ),
        click.option(
            "--observer",
            default="mse",
            show_default=True,
            help="range of activations: mse, minmax, percentile, entropy",
        ),
        click.option("--rounding", default="gptq", show_default=True, help="rounding of weights: gptq, nearest"),
        click.option(
            "--value", default="kl", show_default=True, help="what a policy is judged by: kl (no labels), loss, metric"
        ),
        click.option(
            "--samples", type=WHOLE, default=512, show_default=True, help="calibration samples that judge a policy"
        ),
        click.option(
            "--effort", default="normal", show_default=True, help="how long to search: fast, normal, thorough"
        ),
        click.option("--evaluations", type=WHOLE, help="policies that scoring may evaluate  [default: by --effort]"),
        click.option(
            "--precision",
            type=DECIMAL,
            default=0.0,
            help="stop scoring when all standard errors are below this share of the spread",
        ),
        click.option("--stable", is_flag=True, help="stop scoring when the decision for the budget no longer changes"),
        click.option("--batch", type=BATCH, default=1, show_default=True, help="batch size of the latency"),
        click.option("--seed", type=SEED, default=0, show_default=True, help="seed of everything random"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def resource_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what a run is computed with; they may change from command to command. Passed on as
    `resources`.
    """

    @click.option(
        "--workers", type=WORKERS, help="processes that evaluate  [default: 1, this one; with --ray all of the cluster]"
    )
    @click.option(
        "--ray",
        "address",
        help="evaluate on a Ray cluster: local (one on this machine), auto, host:port or ray://host:port",
    )
    @click.option(
        "--torch-device",
        default="auto",
        show_default=True,
        help="where PyTorch evaluates and trains: auto (a GPU if there is one), cpu, cuda, cuda:N",
    )
    @click.option(
        "--memory-limit", type=DECIMAL, metavar="MB", help="memory that the activations of one evaluation may take"
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        workers: int | None,
        address: str | None,
        torch_device: str,
        memory_limit: float | None,
        **kwargs: Any,
    ) -> tuple[Any, list[str], int]:
        from smpq.value.workers.resources import Resources

        result: tuple[Any, list[str], int] = command(
            *args, resources=Resources(workers, address, memory_limit, torch_device), **kwargs
        )
        return result

    return wrapped


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Option that says where engines are timed. Passed on as `device`."""
    return click.option(
        "--device",
        default="",
        help="machine that times engines: ssh://user@host[:port]  [default: this one]; see docs/jetson.md",
    )(command)


def run_directory(command: Callable[..., Any]) -> Callable[..., Any]:
    """The run directory, for commands that only read its files. Passed on as `run`."""
    return click.argument("run", type=PLACE)(command)


def run_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The run directory, and the task that it may load. Passed on as `run` and `task`."""
    option = click.option("--task", help="the run's task, if it is code and the run was made by others or elsewhere")
    return run_directory(option(command))


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json` and `--quiet`, and the library loaded only when a command really runs: `--help` stays quick."""

    @click.option(
        "--json", "as_json", is_flag=True, help="print the result as JSON on standard output, and nothing else there"
    )
    @click.option("--quiet", is_flag=True, help="no progress on standard error")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
        from deploy.terminal.progress import Progress

        progress = Progress(Console(stderr=True, quiet=quiet))
        try:
            result, lines, code = command(*args, progress=progress, **kwargs)
        except (UserError, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            known = foreseen(error)
            raise known or InternalError(error, kwargs.get("out") or kwargs.get("run")) from error
        if as_json:
            click.echo(json_text(result), nl=False)
        else:
            for line in lines:
                click.echo(line)
        if code:
            sys.exit(code)

    return wrapped


def settings_from_options(options: dict[str, Any]) -> Any:
    """Return the settings of a run from the options of `task_options`."""
    from deploy.run.settings import Settings

    paths = {name: str(options[name].resolve()) if options[name] is not None else None for name in ("data", "weights")}
    return Settings(**{**options, **paths})
