"""What `--help` says, and how little it loads."""

import subprocess
import sys

import cli
from calib.tasks import task_names
from deploy.commands.declared_options import grouped
from tests.commands import done
from tests.conftest import ROOT

FILES = (
    "scores.json", "policy.json", "model.*.onnx", "engine.*", "latency.json", "verify.json", "report.html",
)  # fmt: skip
TAUGHT = {
    "run": ["report.html"],
    "score": ["scores.json"],
    "solve": ["policy.json"],
    "export": ["policy.json", "model.<target>.onnx"],
    "build": ["engine.<target>", "engine.float", "build.json"],
    "measure": ["latency.json"],
    "bundle": ["runner.pyz", "measurements.json", "smpq feedback"],
    "feedback": ["policy.json", "Exit code 1"],
    "curve": ["curve.json", "smpq report", "smpq take"],
    "take": ["policy.json", "smpq export", "budget.json"],
    "verify": ["verify.json"],
    "report": ["report.json", "report.html"],
    "compare": ["correlations", "--picture", "--json"],
    "profile": ["profile.json", "profile.svg"],
    "doctor": ["--device", "--target", "Exit code 2"],
    "explain": ["contributions.json"],
    "finetune": ["finetuned.safetensors"],
    "reconstruct": ["finetuned.safetensors", "--loss"],
    "train-supernet": ["supernet.safetensors"],
    "methods": ["--json"],
    "targets": ["--json"],
}


def test_the_overview_shows_files_and_commands():
    overview = done("--help").out
    assert "\\b" not in overview  # the mark that keeps lines apart is not text
    assert "\n  verify         -> verify.json  " in overview
    assert done().out == overview
    assert [file for file in FILES if file not in overview] == []


def test_help_of_every_command_teaches():
    overview = done("--help").out
    assert TAUGHT.keys() == cli.smpq.commands.keys()
    for name, words in TAUGHT.items():
        text = done(name, "--help").out
        assert text.startswith(f"Usage: smpq {name}")
        assert [word for word in words if word not in text] == []
        assert f"\n  {name} " in overview


def test_every_option_says_what_it_is_for():
    for name, command in cli.smpq.commands.items():
        for parameter in command.params:
            assert parameter.field.declared.help, (name, parameter.opts)


def test_help_of_no_command_loads_what_is_heavy():
    code = (
        "import contextlib, io, sys, cli\n"
        "for name in ('', *cli.smpq.commands):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.smpq.main([*filter(None, [name]), '--help'], standalone_mode=False)\n"
        "print(*sorted({'torch', 'numpy', 'scipy', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""


def test_options_stand_in_groups_and_the_seldom_ones_come_last():
    parameters = cli.smpq.commands["run"].params
    groups = {group.value: [each.opts[0] for each in members] for group, members in grouped(parameters).items()}
    assert list(groups) == ["What", "Where", "How long", "How it is computed", "Output", "Seldom needed"]
    for name in task_names():
        assert f" {name}," in done("run", "--help").out
    assert groups["What"] == ["--task", "--data", "--weights", "--formats", "--pin", "--data-free", "--budget", "--out"]
    assert {"--precision", "--memory-limit", "--observer"} <= set(groups["Seldom needed"])
    text = done("run", "--help").out
    places = [text.index(f"\n{heading}:\n") for heading in groups]
    assert places == sorted(places)
    assert text.index("\nSeldom needed:") < text.index("--memory-limit")
