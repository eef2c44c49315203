"""What the Tab key offers: names that the commands take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

import cli
from calib.formats.format import formats_from_text
from calib.tasks import task_names
from deploy.targets.target import target_from_name
from smpq.problem.budget import COSTS, Budget
from tests.conftest import ROOT


def offered(line: str) -> list[str]:
    """Complete the last word of a line."""
    *words, incomplete = line.split(" ")
    return [
        item.value for item in ShellComplete(cli.smpq, {}, "smpq", "_SMPQ_COMPLETE").get_completions(words, incomplete)
    ]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> None:
    for name in ("runs/digits", "runs/mine", "runs/nothing", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/digits", "runs/mine", "other"):
        (tmp_path / name / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def test_commands_and_options_and_their_values():
    assert offered("me") == ["measure", "methods"]
    assert offered("run --eff") == ["--effort"]
    assert offered("run --effort ") == ["fast", "normal", "thorough"]
    assert offered("run --observer m") == ["mse", "minmax"]
    assert offered("run --task digits") == ["digits", "digits-vit"]
    assert set(offered("run --task ")) == set(task_names())


def test_targets_are_offered_and_each_is_one():
    names = offered("targets ")
    assert names == offered("run --target ")
    assert {"ort-cpu", "tensorrt-rtx", "jetson-orin", "simulate"} <= set(names)
    for name in names:
        assert target_from_name(name, look=False).name
    assert offered("doctor --target jetson-t") == [name for name in names if name.startswith("jetson-t")]


def test_formats_are_those_of_the_target_and_the_last_of_a_list_is_completed():
    found = offered("run --target ort-cpu --formats w8a8,")
    assert "w8a8,int4" in found
    assert "w8a8,w8a8" not in found
    for text in found:
        formats_from_text(text)
    assert set(offered("run --target jetson-orin --formats ")) != set(offered("run --target simulate --formats "))
    assert offered("run --target nowhere --formats int") == ["int8", "int4"]


def test_costs_of_a_budget():
    assert offered("run --budget ") == [f"{cost}=" for cost in COSTS]
    assert offered("run --budget lat") == ["latency="]
    assert offered("run --budget latency=0.8x,si") == ["latency=0.8x,size="]
    assert "latency=0.8x,latency=" not in offered("run --budget latency=0.8x,")
    Budget.from_text(f"{offered('solve runs/a --budget siz')[0]}3kB")


@pytest.mark.usefixtures("runs")
def test_only_directories_that_hold_a_run_are_offered():
    assert offered("verify ") == ["other"]
    assert offered("verify ru") == ["runs/digits", "runs/mine"]
    assert offered("verify runs/") == ["runs/digits", "runs/mine"]
    assert offered("verify runs/n") == []
    assert offered("run --out runs/m") == ["runs/mine"]


@pytest.mark.usefixtures("runs")
def test_the_shell_is_answered_without_loading_what_is_heavy():
    lines = ["verify ru", "run --task digits --target jetson-orin --formats w8", "run --task ", "run --budget "]
    code = (
        "import os, sys, cli\n"
        "for line in sys.argv[1:]:\n"
        "    words = f'smpq {line}'\n"
        "    os.environ.update(COMP_WORDS=words, COMP_CWORD=str(words.count(' ')))\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit:\n"
        "        print('end')\n"
        "print('heavy', *sorted("
        "{'torch', 'numpy', 'scipy', 'onnx', 'onnxruntime', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    environment = {**os.environ, "_SMPQ_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *lines]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    *answers, heavy = found.split("end\n")
    assert len(answers) == len(lines)
    assert all(answers)
    assert "plain,runs/mine" in answers[0]
    assert heavy == "heavy\n"
