"""What is not allowed, of every declared field and every option: one message that names it and says what is."""

import re

import click
import pytest

import cli
from calib.calibrate import CalibrationSettings
from calib.declared import declared_fields
from calib.errors import UserError
from deploy.commands.declared_options import DeclaredArgument, DeclaredOption
from deploy.run.settings import Settings
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.scoring.estimators import Stopping
from smpq.scoring.explanation import Explanation
from smpq.scoring.shapley import ScoringLimits
from smpq.supernet.removal import RemovalWalks
from smpq.supernet.settings import GameSettings, SupernetSettings
from smpq.training.bits.settings import BsqSettings, CpqSettings, KaqSettings, SdqSettings
from smpq.training.settings import FineTuneSettings
from smpq.value.workers.resources import Resources
from tests.commands import TINY, assert_matches, done, refused
from tests.conftest import ROOT
from tests.outside import texts_outside, values_outside

CLASSES = {
    BsqSettings: {},
    CalibrationSettings: {},
    CpqSettings: {},
    Explanation: {},
    FineTuneSettings: {},
    GameSettings: {},
    KaqSettings: {},
    ReconstructionSettings: {},
    RemovalWalks: {"rows": ()},
    Resources: {},
    ScoringLimits: {},
    SdqSettings: {},
    Settings: {"task": "digits"},
    Stopping: {"evaluations": 1},
    SupernetSettings: {},
}
FIELDS = [
    pytest.param(owner, field, id=f"{owner.__name__}.{name}")
    for owner in CLASSES
    for name, field in declared_fields(owner).items()
]
PARAMETERS = [
    pytest.param(name, parameter, id=f"{name} {parameter.opts[0]}")
    for name, command in sorted(cli.smpq.commands.items())
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]
NEEDED = {
    "--budget": "size=0.9x", "--task": "tests.tiny_task:task", "--out": "never", "run": "never", "runs": "never",
    "directory": "never", "measurements": "never", "name": "ort-cpu",
}  # fmt: skip


def test_every_class_that_checks_its_fields_is_looked_at():
    sources = [path.read_text() for room in ("calib", "smpq", "deploy") for path in (ROOT / room).rglob("*.py")]
    assert sum(len(re.findall(r"^        check_declared\(self\)$", source, re.MULTILINE)) for source in sources) == len(
        CLASSES
    )
    assert len(FIELDS) > 50


@pytest.mark.parametrize(
    ("owner", "name", "allowed"),
    [
        (Settings, "samples", "a whole number, at least 1 and at most 1000000000"),
        (Settings, "batch", "a whole number, at least 1 and at most 100000"),
        (Settings, "seed", "a whole number, at least 0 and at most 4294967295"),
        (Settings, "precision", "a number, at least 0 and below 1"),
        (Settings, "observer", "one of mse, minmax, percentile, entropy"),
        (FineTuneSettings, "epochs", "a number, above 0 and at most 1000000000"),
        (SupernetSettings, "walks", "a whole number, at least 2 and at most 1000000000"),
        (Resources, "memory_limit_mb", "a number, above 0 and at most 1000000000"),
    ],
)
def test_limits_that_a_run_rests_on(owner, name, allowed):
    assert declared_fields(owner)[name].allowed == allowed


@pytest.mark.parametrize(("owner", "field"), FIELDS)
def test_a_value_that_a_field_cannot_have(owner, field):
    for value in values_outside(field):
        with pytest.raises(UserError) as raised:
            owner(**{**CLASSES[owner], field.name: value})
        message = str(raised.value)
        assert message.startswith(field.label), value
        assert len(message) < 500, value


def call(command, parameter, value):
    """The arguments of a command whose only fault is one value."""
    arguments = [command]
    for other in cli.smpq.commands[command].params:
        text = value if other is parameter else NEEDED.get(other.opts[0]) if other.required else None
        if text is not None:
            arguments += [text] if isinstance(other, click.Argument) else [f"{other.opts[0]}={text}"]
    return arguments


def test_every_option_is_declared():
    assert {type(parameter) for command in cli.smpq.commands.values() for parameter in command.params} == {
        DeclaredOption,
        DeclaredArgument,
    }
    free = {
        parameter.opts[0]
        for _, parameter in (case.values for case in PARAMETERS)
        if not parameter.field.declared.limits
    }
    assert free == {"--device"}
    assert len(PARAMETERS) > 80


@pytest.mark.parametrize(("command", "parameter"), PARAMETERS)
def test_a_text_that_an_option_cannot_have(tmp_path, monkeypatch, command, parameter):
    monkeypatch.chdir(tmp_path)
    for text in texts_outside(parameter.field):
        message = refused(*call(command, parameter, text))
        assert_matches(rf"^error: {parameter.field.label}(: | must be )", message)
        assert_matches(rf"See smpq {command} --help$", message)
        assert len(message) < 600, text
    assert list(tmp_path.iterdir()) == []


# What is right by itself, and wrong for this task, this target or together.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory-limit", "1e-320"], "more than the memory limit"),
        (["--budget", "size=1e308GB"], "the limit must be between"),
        (["--budget", "size=1e-300x"], "the limit must be between"),
        (["--budget", "size=1e-9x"], "no policy meets the budget; the nearest one has size"),
        (["--budget", "bops=0.000001"], "no policy meets the budget; the nearest one has bops"),
        (["--budget", "size=٠.5x"], "is no number above zero"),
        (["--budget", "size=" + "9" * 400], "must be above zero and finite"),
    ],
)
def test_values_that_mean_nothing(tmp_path, options, message):
    assert_matches(message, refused("run", *TINY, "--budget", "size=0.9x", "--out", tmp_path / "run", *options))
    assert not (tmp_path / "run" / "scores.json").exists()


def test_a_fine_tuning_without_a_loss():
    with pytest.raises(UserError, match="needs labels or distillation"):
        FineTuneSettings(labels=0, distillation=0)


@pytest.mark.parametrize("values", [(), ("kl", "kl")])
def test_a_game_without_values_or_with_one_twice(values):
    with pytest.raises(UserError, match="each once"):
        GameSettings(values)


def test_limits_and_odd_spellings_that_are_numbers(tmp_path):
    run = tmp_path / "run"
    options = ["--seed", "4294967295", "--precision", "-0.0", "--evaluations", " 12 ", "--samples", "+16"]
    done("score", *TINY[:2], *options, "--memory-limit", "1e9", "--out", run)
    done("solve", run, "--budget", "size=1e30")
    done("solve", run, "--budget", "size=.9x", "--memory-limit", "1.")
