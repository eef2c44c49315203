"""Absurd values of every option that takes a number or a path, found by asking the commands themselves for their
options.
"""

import click
import pytest
from deploy.commands.numbers import Decimal, Place, Whole

import cli
from tests.commands import TINY, assert_matches, copy_of, done, refused

NO_NUMBERS = (
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "infinity",
    "٣",
    "1٠",
    "1_0",
    "0x10",
    "1,5",
    "1e",
    "\t",
    "９",
    "x" * 5000,
    "--",
    "½",
)
TOO_LARGE = ("1" * 5000, "1e308", "9" * 30, str(10**30))
NEEDED = {
    "--budget": "size=0.9x", "--task": "tests.tiny_task:task", "--out": "never", "run": "never", "directory": "never",
    "measurements": "never", "name": "ort-cpu",
}  # fmt: skip


def parameters(kind):
    """Every (command, parameter) of a type."""
    return [
        pytest.param(name, parameter, id=f"{name} {parameter.opts[0]}")
        for name, command in sorted(cli.smpq.commands.items())
        for parameter in command.params
        if isinstance(parameter.type, kind)
    ]


def call(command, parameter, value):
    """The arguments of a command whose only fault is one value."""
    arguments = [command]
    for other in cli.smpq.commands[command].params:
        text = value if other is parameter else NEEDED.get(other.opts[0]) if other.required else None
        if text is not None:
            arguments += [text] if isinstance(other, click.Argument) else [f"{other.opts[0]}={text}"]
    return arguments


def test_no_option_has_a_type_that_is_not_checked():
    kinds = (Whole, Decimal, Place, click.types.StringParamType, click.types.BoolParamType)
    others = [(name, parameter.opts[0]) for name, command in cli.smpq.commands.items() for parameter in command.params
              if not isinstance(parameter.type, kinds)]  # fmt: skip
    assert others == []
    assert len(parameters(Whole)) > 15
    assert len(parameters(Decimal)) > 8


@pytest.mark.parametrize(("command", "parameter"), parameters((Whole, Decimal)))
def test_what_is_no_number_or_too_large(tmp_path, monkeypatch, command, parameter):
    monkeypatch.chdir(tmp_path)
    for value in NO_NUMBERS:
        message = refused(*call(command, parameter, value))
        assert_matches(rf"'{parameter.opts[0]}'.*is not a valid (integer|number)", message)
        assert len(message) < 300
    for value in TOO_LARGE:
        assert_matches("is too large|is not a valid integer", refused(*call(command, parameter, value)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "parameter"), parameters(Place))
def test_a_path_that_is_empty_or_cannot_be(tmp_path, monkeypatch, command, parameter):
    monkeypatch.chdir(tmp_path)
    for value in ("", " ", "\t"):
        assert_matches("the path is empty", refused(*call(command, parameter, value)))
    for value in ("x" * 300, "x/" * 3000):
        message = refused(*call(command, parameter, value))
        assert_matches("cannot be a path", message)
        assert len(message) < 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory-limit", "1e308"], "1e308.* is too large"),
        (["--memory-limit", "-0.0"], "a number of MB above 0"),
        (["--memory-limit", "1e-320"], "more than the memory limit"),
        (["--samples", "-0"], "--samples must be at least 1"),
        (["--batch", "-1"], "--batch must be at least 1"),
        (["--workers", "-1"], "--workers must be at least 1"),
        (["--precision", "1"], "--precision is a fraction"),
        (["--finetune", "-1"], "epochs of the fine-tuning must be a number above 0"),
        (["--budget", "size=1e308GB"], "the limit must be between"),
        (["--budget", "size=1e-300x"], "the limit must be between"),
        (["--budget", "size=1e-9x"], "no policy meets the budget; the nearest one has size"),
        (["--budget", "bops=0.000001"], "no policy meets the budget; the nearest one has bops"),
        (["--budget", "size=٠.5x"], "is not a number"),
        (["--budget", "size=" + "9" * 400], "must be above zero and finite"),
    ],
)
def test_values_that_mean_nothing(tmp_path, options, message):
    assert_matches(message, refused("run", *TINY, "--budget", "size=0.9x", "--out", tmp_path / "run", *options))
    assert not (tmp_path / "run" / "scores.json").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["finetune", "{run}", "--epochs", "-0.0"], "epochs of the fine-tuning"),
        (["finetune", "{run}", "--lr", "0"], "learning_rate of the fine-tuning"),
        (["explain", "{run}", "--evaluations", "0"], "at least one evaluation"),
        (["explain", "{run}", "--precision", "-0.5"], "from 0 to below 1"),
        (["measure", "{run}", "--batch", "0"], "is too small: it must be at least 1"),
        (["export", "{run}", "--format", "onnx-qdq", "--batch", "-4"], "is too small: it must be at least 1"),
        (["train-supernet", *TINY, "--out", "{run}", "--epochs", "0"], "epochs of the supernet must be at least 1"),
        (["train-supernet", *TINY, "--out", "{run}", "--walks", "1"], "at least 2 walks"),
        (["train-supernet", *TINY, "--out", "{run}", "--gamma", "1"], "from 0 to below 1"),
        (
            ["train-supernet", *TINY, "--out", "{run}", "--complexity", "-1"],
            "complexity of the supernet must be 0 or more",
        ),
        (["train-supernet", *TINY, "--out", "{run}", "--held-out", "0"], "samples of the supernet must be at least 1"),
    ],
)
def test_values_of_later_commands_that_mean_nothing(good_run, tmp_path, command, message):
    run = copy_of(good_run, tmp_path / "run")
    assert_matches(message, refused(*[str(part).format(run=run) for part in command]))


def test_limits_and_odd_spellings_that_are_numbers(tmp_path):
    run = tmp_path / "run"
    options = [
        "--seed",
        "4294967295",
        "--precision",
        "-0.0",
        "--evaluations",
        " 12 ",
        "--samples",
        "+16",
        "--memory-limit",
        "1e9",
    ]
    done("score", *TINY[:2], *options, "--out", run)
    done("solve", run, "--budget", "size=1e30")
    done("solve", run, "--budget", "size=.9x", "--memory-limit", "1.")
