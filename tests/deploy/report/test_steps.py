"""The command that a report names is one that the command line takes as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import cli
from deploy.commands.declared_options import settings_from_options
from deploy.files.report import ReportFile
from deploy.report.answers import answers
from deploy.report.steps import changes
from deploy.run.settings import Settings, options_of
from tests.deploy.report.curve_sample import curve
from tests.deploy.report.report_sample import (
    LATENCY,
    RUN,
    VERIFICATION,
    layer,
    long,
    observation,
    report,
    stage,
    unmeasured,
)

OPTIONS = {
    "--task": ["digits"], "--data": ["/my data"], "--formats": ["w8a8,fp32"], "--sm": ["sm86", "sm120"],
    "--effort": ["fast"], "--evaluations": ["90"], "--size-only": [], "--method": ["hawq"], "--finetune": ["2"],
}  # fmt: skip
SLOWER = {**LATENCY, "ratio": 1.1, "interval": [1.05, 1.2]}
NOT_MET = {
    "cost": "latency", "limit": 0.5, "reached": 0.6421, "interval": [0.6388, 0.6467], "unit": "x", "met": False,
}  # fmt: skip
UNPREDICTED = {**SLOWER, "predicted_ratio": None, "predicted_interval": None, "predicted_from": 0}
LOSS = {"cost": "drop", "limit": 0.5, "reached": 0.31, "interval": [0.07, 0.55], "unit": "points", "met": False}
SIZE = {"cost": "size", "limit": 500_000, "reached": 301_000, "unit": "bytes", "met": True}
ORIN = {"--task": ["digits"], "--device": ["ssh://me@Orin?python=/opt/py"]}
THERE = "--device 'ssh://me@Orin?python=/opt/py'"
LOST = {
    **VERIFICATION,
    "lost_at": "fake_quant",
    "stages": {**VERIFICATION["stages"], "fake_quant": stage(0.8, -0.085, 0.9)},
}
SYNTHETIC = {
    "schema": 1, "samples": 512, "batch": 64, "seed": 0, "source": "example_inputs()", "norms": 19,
    "noise_mismatch": 0.5, "mismatch": 0.01, "inputs": [], "evaluation": True,
}  # fmt: skip
UNCLEAR = [layer("fc", interval=[-0.002, 0.001])]
UNBUILT = [layer("fc", kernel=None, kernel_agrees=None)]
LEFT = "smpq run --task cifar10-resnet20"
KEPT = (
    "smpq run --task digits --data '/my data' --formats w8a8,fp32 --sm sm86 --sm sm120 --effort fast "
    "--evaluations 90 --size-only --method hawq --finetune 2"
)
WIDENED = KEPT.replace(" --formats w8a8,fp32", "")
LONGER = KEPT.replace("fast --evaluations 90", "thorough")
TUNED = {
    "schema": 1, "policy": "p", "sha256": "0" * 64, "kept": "end", "before": {"value": 0.0, "metric": 0.5},
    "after": {"value": 0.0, "metric": 0.5}, "samples": "calibration", "seconds": 1.0, "settings": {"epochs": 2.0},
    "history": [],
}  # fmt: skip


def command_of(content: ReportFile, run: Path = RUN) -> str | None:
    """The command of the answer, which is in its first sentence."""
    found = re.search(r"`(smpq [^`]*)`", changes(content, run).sentences[0])
    return found[1] if found else None


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (report(), "smpq curve runs/mine"),
        (report(curve=curve()), None),
        (report(verification=None), "smpq verify runs/mine"),
        (report(verification=None, layers=UNBUILT), "smpq export runs/mine"),
        (report(latency=None, latency_note="not measured yet: use smpq measure"), "smpq measure runs/mine"),
        (unmeasured(), "smpq doctor --target tensorrt-rtx"),
        (long(), "smpq targets ort-cpu"),
        (report(limits=[NOT_MET]), f"{LEFT} --budget latency=0.65x --out runs/mine"),
        (report(limits=[{**NOT_MET, "reached": 0.7}], cut_short=True),
         f"{LEFT} --budget latency=0.65x --out runs/mine"),
        (report(limits=[NOT_MET], options=OPTIONS), f"{KEPT} --budget latency=0.65x --out runs/mine"),
        (report(limits=[{**NOT_MET, "unit": "ms", "limit": 1, "reached": 1.884, "interval": [1.874, 1.897]}]),
         f"{LEFT} --budget latency=1.9ms --out runs/mine"),
        (report(limits=[{**NOT_MET, "limit": 0.645}]), "smpq measure runs/mine"),
        (report(limits=[NOT_MET], latency=SLOWER, options=OPTIONS),
         f"{WIDENED} --budget latency=0.65x --out runs/mine-all-formats"),
        (report(verification=LOST), f"{LEFT} --finetune 4 --budget latency=0.65x --out runs/mine"),
        (report(verification=LOST, tuning="reconstruct"),
         f"{LEFT} --reconstruct mse --budget latency=0.65x --out runs/mine"),
        (report(verification=LOST, tuning=None), "smpq curve runs/mine"),
        (report(verification=LOST, tuning=None, synthetic=SYNTHETIC), "smpq curve runs/mine"),
        (report(verification=None, synthetic={**SYNTHETIC, "evaluation": False}), None),
        (report(verification=LOST, tuning=None, finetuning=TUNED), "smpq curve runs/mine"),
        (report(layers=UNCLEAR, options=OPTIONS), f"{LONGER} --budget latency=0.65x --out runs/mine-thorough"),
        (report(layers=UNCLEAR, settings={"effort": "thorough"}), None),
        (report(options={}, limits=[NOT_MET]), None),
        (report(limits=[{**LOSS, "reached": 0.83, "interval": [0.6, 1.07]}]),
         f"{LEFT} --budget drop=1.1 --out runs/mine"),
        (report(limits=[LOSS]), f"{LEFT} --budget drop=0.55 --out runs/mine"),
        (report(limits=[LOSS, {**SIZE, "unit": "x", "limit": 1 / 3, "reached": 0.3}]),
         f"{LEFT} --budget drop=0.55,size=0.3333333333333333x --out runs/mine"),
        (report(options=ORIN), f"smpq curve runs/mine {THERE}"),
        (report(options=ORIN, limits=[{**NOT_MET, "limit": 0.645}]), f"smpq measure runs/mine {THERE}"),
        (report(options=ORIN, verification=None), "smpq verify runs/mine"),
        (report(options=ORIN, limits=[NOT_MET]),
         f"smpq run --task digits {THERE} --budget latency=0.65x --out runs/mine"),
        (unmeasured(options=ORIN), f"smpq doctor {THERE} --target tensorrt-rtx"),
        (report(limits=[SIZE], latency=UNPREDICTED), "smpq curve runs/mine"),
        (report(limits=[SIZE, {**LOSS, "met": True}], latency=SLOWER), "smpq targets ort-cpu"),
        (report(limits=[], latency=SLOWER), "smpq targets ort-cpu"),
    ],
)  # fmt: skip
def test_it_names_one_command_that_exists_with_options_that_exist(content, command):
    found = command_of(content)
    assert found == command
    if found is not None:
        program, name, *arguments = shlex.split(found)
        assert program == "smpq"
        cli.smpq.commands[name].make_context(name, arguments)  # as click parses it: UsageError otherwise


def test_a_directory_is_quoted_as_a_shell_needs_it():
    assert command_of(report(), Path("runs/my net")) == "smpq curve 'runs/my net'"


def test_an_interval_that_reaches_beyond_the_limit_is_what_missed_it():
    said = changes(report(limits=[{**NOT_MET, "limit": 0.645}]), RUN).sentences[1]
    assert said.startswith("latency ≤ 0.645x is not met: 0.642x is reached, but its interval reaches 0.647x.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {},
            (
                "is not shown: 0.31 points is lost, and its interval reaches 0.55 points. More held-out samples narrow "
                "it; or allow 0.55 points."
            ),
        ),
        (
            {"reached": 0.83, "interval": [0.6, 1.07]},
            (
                "is not met: 0.83 points is lost, and its interval reaches 1.07 points. Allow that much, or offer "
                "formats with more bits."
            ),
        ),
    ],
)
def test_a_loss_that_is_not_shown_to_be_small_enough_has_its_own_advice(change, said):
    assert changes(report(limits=[{**LOSS, **change}]), RUN).sentences[1] == f"drop ≤ 0.5 points {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (report(latency=SLOWER), "Do not deploy it for speed: keep the float engine"),
        (report(latency={**SLOWER, "interval": [0.95, 1.2]}), "It is not shown to be faster: for speed keep the float"),
        (report(is_float=True), "It is the float engine: to be faster, offer other formats."),
    ],
)
def test_what_is_not_faster_is_not_for_speed(content, said):
    assert changes(content, RUN).sentences[1].startswith(said)


def test_the_float_engine_that_is_kept_for_its_loss_asks_for_more_loss_or_more_samples():
    held = {**LOSS, "reached": 0.0, "interval": [0.0, 0.0], "met": True}
    content = report(is_float=True, limits=[held], observations=[observation("turn 1", 0.5, 0.41)])
    first, second, *_ = changes(content, RUN).sentences
    assert (first, second) == (
        f"Next: `smpq curve {RUN}`.",
        "It is the float engine: to be faster, allow a larger loss, or hold out more samples to show a smaller one.",
    )
    why = answers(content, RUN)[1]
    assert "No faster one is shown to lose as little as the budget allows." in why.sentences[0]
    assert "lose more to conversions" not in why.sentences[0]


def test_the_options_of_settings_are_those_that_ask_for_them():
    settings = Settings(
        task="digits",
        formats="w8a8,fp32",
        compute_capabilities=("sm86", "sm120"),
        effort="fast",
        size_only=True,
        precision=0.1,
    )
    options = options_of(settings)
    assert "--seed" not in options
    arguments = [
        word
        for option, values in options.items()
        for word in ([each for value in values for each in (option, value)] or [option])
    ]
    context = cli.smpq.commands["run"].make_context("run", arguments)
    assert settings_from_options(Settings, context.params) == settings
