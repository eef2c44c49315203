"""Every wrong input is one message on standard error and exit code 2, changes no file, and leaves a run that goes
on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.runner.cuda import open_cuda
from deploy.runner.errors import MissingModule
from tests.commands import TINY, assert_matches, contents, copy_of, done, filled, refused
from tests.conftest import ROOT
from tests.tiny_task import FAULT

SOLVE = ("solve", "{run}", "--budget", "avg_bits=8")


@pytest.fixture
def run(good_run, tmp_path):
    return copy_of(good_run, tmp_path / "run")


# What is given on the command line: nothing is created, and the corrected command works in the same place.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nope"], "unknown task 'nope'.*digits"),
        (["--task", "no_such_module:task"], "no module no_such_module"),
        (["--task", "tests.tiny_task:absent"], "has no 'absent'"),
        (["--task", "tests.tiny_task:partial"], r"without calibration\(\), evaluation\(\), metric\(\), loss\(\)"),
        (["--target", "orin"], "unknown target 'orin': write one of ort-cpu"),
        (["--target", "tensorrt-rtx", "--sm", "sm12"], "unknown compute capability 'sm12'"),
        (["--sm", "sm86"], "takes no compute capability"),
        (["--formats", "w8a8,int9"], "unknown format 'int9'"),
        (["--formats", "w9a8"], "unknown format .w9a8.: .* weights may be 1, 2, 3"),
        (["--formats", "w8a8,w8a8"], "named twice"),
        (["--formats", "w3a5"], "none of the formats can be used"),
        (["--formats", ","], "no format given"),
        (
            ["--memory-limit", "0.0001"],
            "one sample's activations take .* more than the memory limit of 0.0001 MB: raise it",
        ),
        (["--device", "orin"], "unknown device orin: write local, or ssh://user@host"),
        (["--device", "ssh://"], "ssh://user@host"),
        (["--device", "ssh://me@orin:port"], "ssh://user@host"),
        (["--colour", "red"], "No such option.*--colour.*smpq run --help"),
        (["--budget", "small"], "budget 'small' not understood.*latency=0.65x"),
        (["--budget", "size=tiny"], "'tiny' is no number above zero"),
        (["--budget", "size=0.2furlongs"], "unit 'furlongs' is not known for size"),
        (["--budget", "size=-1x"], "'-1x' is no number above zero"),
        (["--budget", "size=0"], "above zero"),
        (["--budget", ","], "budget is empty"),
        (["--budget", "size=0.5x,size=0.4x"], "names size twice"),
        (["--budget", "size=0.5x,latency"], "'latency' not understood"),
    ],
)
def test_options(tmp_path, options, message):
    out = tmp_path / "run"
    right = ["run", *TINY, "--budget", "size=0.9x", "--out", str(out)]
    assert_matches(message, refused(*right, *options))
    assert not out.exists()


def test_a_refused_command_does_not_stand_in_the_way_of_the_right_one(tmp_path):
    out = tmp_path / "run"
    refused("score", *TINY, "--out", out, "--sm", "sm86")
    done("score", *TINY, "--out", out)


@pytest.mark.parametrize(("command", "missing"), [("run", "--task"), ("score", "--task"), ("score", "--out")])
def test_a_missing_option(tmp_path, command, missing):
    options = {"--task": "tests.tiny_task:task", "--out": str(tmp_path / "run")}
    del options[missing]
    message = refused(command, *(text for pair in options.items() for text in pair))
    assert f"Missing option '{missing}'" in message
    assert f"smpq {command} --help" in message


def test_commands_and_runs_that_are_not_there(tmp_path, run):
    assert "No such command 'sing'" in refused("sing")
    assert "Missing argument 'RUN'" in refused("verify")
    for command in ("export", "build", "measure", "verify", "report"):
        assert "is not a run (it has no run.json)" in refused(command, tmp_path / "nowhere")
    assert "is not a run" in refused("solve", tmp_path, "--budget", "avg_bits=8")
    assert "unknown target 'gpu'" in refused("targets", "gpu")
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file: give --out a directory" in refused("score", *TINY, "--out", file)
    assert "Not a directory" in refused("score", *TINY, "--out", file / "run")
    assert file.read_text() == "mine"


def test_a_run_keeps_its_settings(run):
    before = contents(run)
    message = refused("run", *TINY, "--budget", "size=0.9x", "--out", run, "--formats", "w8a8")
    assert "formats='', now 'w8a8' is asked for: use another --out" in message
    assert "seed=0, now 4" in refused("score", *TINY, "--out", run, "--seed", "4")
    assert contents(run) == before
    done("score", *TINY, "--out", run)


# The task: everything that a user's code can do. The run is there already, and goes on when the code is corrected.


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("factory", r"tests.tiny_task:task\(.*\) failed: RuntimeError: no licence"),
        ("model", r"model\(\) failed: RuntimeError: checkpoint lost"),
        ("no module", r"the model must be a torch.nn.Module, not a value of type dict"),
        ("nan weights", "'second.weight' of the model holds NaN"),
        ("other weights", "the weights changed since"),
        ("other forward", r"the model's forward\(\) changed since"),
        ("other data", "the calibration data changed since"),
        ("nan data", "input 0 of calibration batch 1 holds NaN"),
        ("empty", r"calibration\(\) gave no batch"),
        ("one shot", r"calibration\(\) .* the second time"),
        ("one shot of one", r"calibration\(\) is empty the second time"),
        ("loader", r"looping over calibration\(\) failed: OSError: disk on fire"),
        ("shapes", "the model fails on calibration batch 1: RuntimeError"),
        ("no pairs", "calibration batch 0 must be"),
        ("targets", "calibration batch 0 has 8 samples and 3 targets"),
        ("untraceable", "cannot be traced by torch.export"),
        ("no layer", "no layer that can be quantised"),
        ("infinite output", "the model's output on calibration batch 0 holds"),
        ("no numbers", r"holds no numbers .* divergence\(output, float_output\)"),
        ("metric", r"metric\(\) failed: KeyError: 'top1'"),
        ("metric length", r"metric\(\) must return one value per sample, \[8\], not \[\]"),
        ("metric drawn", r"accuracy of the same outputs and targets is [\d.]+, and [\d.]+ the second time"),
        ("metric complex", r"metric\(\) returns complex numbers"),
        ("point", r"metric_point is 0.0: it must be a number above zero"),
        ("evaluation", r"evaluation\(\) failed: RuntimeError: test set on strike"),
        ("empty evaluation", r"evaluation\(\) gave no batch"),
    ],
)
def test_the_task(run, monkeypatch, fault, message):
    before = contents(run)
    monkeypatch.setenv(FAULT, fault)
    assert_matches(message, refused("verify", run))
    assert contents(run) == before


def test_the_run_goes_on_when_the_task_is_corrected(run, monkeypatch):
    monkeypatch.setenv(FAULT, "metric")
    refused("verify", run)
    monkeypatch.delenv(FAULT)
    done("verify", run)


def test_a_model_in_training_mode_is_not_an_error(run, monkeypatch):
    monkeypatch.setenv(FAULT, "training mode")
    done("verify", run)


def test_a_loss_that_fails_while_scoring_keeps_what_was_evaluated(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv(FAULT, "loss")
    assert r"loss() failed: ZeroDivisionError: after a while" in refused(
        "score", *TINY, "--value", "loss", "--out", out
    )
    monkeypatch.delenv(FAULT)
    record = json.loads(done("score", *TINY, "--value", "loss", "--out", out, "--json").out)
    assert record["value"] == "loss"


def test_a_module_that_fails_on_import(tmp_path, monkeypatch):
    (tmp_path / "tiny_broken.py").write_text("raise RuntimeError('no GPU in sight')\n")
    monkeypatch.chdir(tmp_path)
    message = refused("score", "--task", "tiny_broken:task", "--out", "run")
    assert "importing tiny_broken failed: RuntimeError: no GPU in sight" in message
    assert not Path("run").exists()


# Data and weights on disk.


# Budgets that cannot be.


def test_an_impossible_budget_names_the_nearest_point_and_keeps_the_old_plan(run):
    before = contents(run)
    for command in (["solve", run], ["run", *TINY, "--out", run]):
        message = refused(*command, "--budget", "size=0.001x")
        assert_matches(
            r"no policy meets the budget; the nearest one has size \d+ \(0\.\d+x of float\), wanted at most", message
        )
    assert contents(run) == before
    done(*filled(SOLVE, run=run))


def test_an_impossible_budget_is_refused_before_anything_is_scored(tmp_path):
    refused("run", *TINY, "--out", tmp_path / "run", "--budget", "avg_bits=1")
    assert not (tmp_path / "run" / "scores.json").exists()
    assert not (tmp_path / "run" / "policy.json").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["simulate"], "simulate has no engine to time; or give a budget on size, avg_bits or bops"),
        (["tensorrt-rtx"], "--device, or use smpq bundle; or give a budget on size"),
        (["tensorrt"], "--device, or use smpq bundle; or give a budget on size"),
        (
            ["jetson-orin"],
            "its engines are built on the device .smpq run --device, or smpq bundle.; smpq score, solve and export",
        ),
        (["ort-cuda", "--formats", "w4a16b8,fp32"], "this onnxruntime is built without CUDAExecutionProvider"),
    ],
)
def test_a_latency_budget_where_nothing_can_be_timed(tmp_path, target, message):
    if target != ["simulate"] and has_gpu():
        pytest.skip("this machine has a GPU")
    arguments = ["run", *TINY, "--target", *target, "--out", tmp_path / "run"]
    assert_matches(message, refused(*arguments, "--budget", "latency=0.5x"))
    assert not (tmp_path / "run" / "scores.json").exists()


def test_what_only_a_device_builds_is_refused_before_anything_is_scored(tmp_path):
    arguments = ["run", *TINY, "--target", "jetson-orin", "--out", tmp_path / "run", "--budget", "size=0.3x"]
    assert_matches("its engines are built on the device .*smpq score, solve and export work here", refused(*arguments))
    assert not (tmp_path / "run" / "scores.json").exists()


def has_gpu():
    try:
        open_cuda().close()
    except MissingModule:
        return False
    return True


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh: apt-get install openssh-client")
def test_a_device_that_does_not_answer(tmp_path, run, monkeypatch):
    monkeypatch.setattr("deploy.devices.ssh.time.sleep", lambda _: None)
    away = ["--device", "ssh://somebody@127.0.0.1:1"]
    message = refused("run", *TINY, "--budget", "latency=0.5x", "--out", tmp_path / "new", *away)
    assert "ssh://somebody@127.0.0.1:1: connection lost" in message
    assert "start again when it can be reached" in message
    assert not (tmp_path / "new" / "scores.json").exists(), "told before the work"
    before = contents(run)
    assert "connection lost" in refused("measure", run, *away)
    assert contents(run) == before
    done("measure", run)


def test_a_latency_budget_before_anything_was_measured(run):
    (run / "observations.json").unlink()
    before = contents(run)
    assert "has measured no engine yet" in refused("solve", run, "--budget", "latency=0.5x")
    assert contents(run) == before
    done(*filled(SOLVE, run=run))


# The installed command itself.


def test_the_real_process(tmp_path, run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", FAULT: "nan weights"}
    before = contents(run)
    command = [sys.executable, "-m", "cli", "verify", str(run)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr
        == "error: 'second.weight' of the model holds NaN: correct it first, quantisation would spread it\n"
    )
    assert contents(run) == before
