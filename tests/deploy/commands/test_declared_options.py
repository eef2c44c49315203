from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click
import pytest
from click.testing import CliRunner

from calib.declared import APath, Declared, Group, Interval, OneOf
from deploy.commands.declared_options import GroupedCommand, declared_options, settings_from_options


@dataclass(frozen=True)
class Settings:
    """No `check_declared`: the options check by themselves."""

    steps: Annotated[int, Declared("steps to take", Interval(1), "--steps", Group.LENGTH)] = 5
    sample_count: Annotated[int, Declared("samples", Interval(0, 9), "--samples", Group.LENGTH)] = 0
    rate: Annotated[float | None, Declared("rate", Interval(0), "--rate", unset="by steps", metavar="HZ")] = None
    name: Annotated[str, Declared("name", OneOf(("first", "second")), "--name")] = "first"
    sizes: Annotated[tuple[int, ...], Declared("a size", Interval(2), "--size", Group.WHAT)] = ()
    data: Annotated[str | None, Declared("data", APath(), "--data", Group.WHAT)] = None
    learn: Annotated[bool | None, Declared("learn", option="--learn/--keep")] = None
    fast: Annotated[bool, Declared("be fast", option="--fast")] = False
    hidden: Annotated[int, Declared("not an option", Interval(1))] = 1


@dataclass(frozen=True)
class Own:
    run: Annotated[Path, Declared("where", APath(), "RUN")]
    needed: Annotated[str, Declared("needed", option="--needed")]


SEEN: list[tuple[Path, Settings]] = []


@click.command("try", cls=GroupedCommand)
@declared_options(Own, "run")
@declared_options(Settings)
def command(run, **options):
    SEEN.append((run, settings_from_options(Settings, options)))
    assert options == {}


def called(*arguments):
    SEEN.clear()
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return SEEN[0]


def test_options_become_settings():
    assert called("out") == (Path("out"), Settings())
    chosen = called("out", "--steps", " 7 ", "--samples", "3", "--rate", "1e1", "--size", "2", "--size", "4", "--fast")
    assert chosen[1] == Settings(7, 3, 10.0, sizes=(2, 4), fast=True)
    assert called("out", "--learn")[1].learn is True
    assert called("out", "--keep")[1].learn is False


def test_minus_zero_is_zero_and_a_path_is_absolute():
    assert str(called("out", "--rate", "-0.0")[1].rate) == "0.0"
    assert called("out", "--data", ".")[1].data == str(Path.cwd())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be a whole number, at least 1 and at most 1000000000, not 0."),
        (["--steps", "1.5"], "--steps must be a whole number, at least 1 and at most 1000000000, not '1.5'."),
        (["--size", "2", "--size", "1"], "--size must be a whole number, at least 2 and at most 1000000000, not 1."),
        (["--name", "third"], "--name must be one of first, second, not 'third'."),
    ],
)
def test_what_is_wrong_is_told(arguments, message):
    result = CliRunner().invoke(command, ["out", *arguments])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {message}"


def test_help_shows_groups_in_order_with_defaults_and_limits():
    text = CliRunner().invoke(command, ["--help"], terminal_width=120).output
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "What:", "How long:", "How it is computed:", "Output:"]
    for line in (
        "  --steps INTEGER    steps to take  [default: 5; at least 1]",
        "  --samples INTEGER  samples  [default: 0; at least 0 and at most 9]",
        "  --rate HZ          rate  [default: by steps; at least 0]",
        "  --name TEXT        name: first, second  [default: first]",
        "  --fast             be fast",
        "  RUN                where",
        "  --help             Show this message and exit.",
    ):
        assert line in text
    assert "hidden" not in text


def test_a_field_without_a_default_is_required():
    needing = click.command("try", cls=GroupedCommand)(declared_options(Own)(lambda run, needed: None))
    assert "Missing option '--needed'" in CliRunner().invoke(needing, ["out"]).output
    assert "Missing argument 'RUN'" in CliRunner().invoke(needing, ["--needed", "x"]).output
