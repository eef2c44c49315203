"""Every wrong input is one message on standard error and exit code 2, changes no file, and leaves a run that goes on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from calib.tasks.cifar10_resnet20 import ResNet20
from tests.calib.conftest import write_batch
from tests.commands import TINY, contents, copy_of, done, smpq
from tests.conftest import ROOT
from tests.tiny_task import FAULT

SOLVE = ("solve", "{run}", "--budget", "avg_bits=8")


def refused(*arguments):
    """Call a command that must be refused; returns its message."""
    result = smpq(*arguments)
    assert result.code == 2, (result.code, result.out, result.err)
    assert result.out == ""
    (message,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.err.strip().endswith(message), "the message comes last"
    assert "Traceback" not in result.err
    return message


def assert_matches(pattern, message):
    assert re.search(pattern, message), message


def filled(arguments, **places):
    return [str(argument).format(**places) for argument in arguments]


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
        (["--formats", "w9a8"], "weights of 9 bits"),
        (["--formats", "w8a8,w8a8"], "named twice"),
        (["--formats", "w3a5"], "none of the formats can be used"),
        (["--formats", ","], "no format given"),
        (["--observer", "guess"], "unknown observer 'guess'.*mse"),
        (["--rounding", "up"], "unknown rounding.*'up'.*gptq"),
        (["--value", "taste"], "unknown value 'taste'.*kl"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--samples", "many"], "'--samples'.*'many' is not a valid int"),
        (["--evaluations", "-1"], "--evaluations must be at least 1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--precision", "2"], "--precision is a fraction"),
        (["--precision", "nan"], "--precision is a fraction"),
        (["--seed", "-3"], "--seed must be 0 or more"),
        (["--colour", "red"], "No such option.*--colour.*smpq run --help"),
        (["--budget", "small"], "budget 'small' not understood.*latency=0.65x"),
        (["--budget", "size=tiny"], "'tiny' is not a number"),
        (["--budget", "size=0.2furlongs"], "unit 'furlongs' is not known for size"),
        (["--budget", "size=-1x"], "'-1x' is not a number"),
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


@pytest.mark.parametrize("missing", ["--task", "--budget", "--out"])
def test_a_missing_option(tmp_path, missing):
    options = {"--task": "tests.tiny_task:task", "--budget": "size=0.9x", "--out": str(tmp_path / "run")}
    del options[missing]
    message = refused("run", *(text for pair in options.items() for text in pair))
    assert f"Missing option '{missing}'" in message
    assert "smpq run --help" in message


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
    assert "cannot create" in refused("score", *TINY, "--out", file / "run")
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
        ("no module", r"model\(\) must return a torch.nn.Module, not a value of type dict"),
        ("nan weights", "'second.weight' of the model holds NaN"),
        ("other weights", "weights or the calibration data have changed"),
        ("nan data", "input 0 of calibration batch 1 holds NaN"),
        ("empty", r"calibration\(\) gave no batch"),
        ("one shot", r"calibration\(\) .* the second time"),
        ("one shot of one", r"calibration\(\) is empty the second time"),
        ("loader", r"looping over calibration\(\) failed: OSError: disk on fire"),
        ("shapes", r"input 0 of calibration batch 1 is .*\[8, 1, 8, 8\]"),
        ("no pairs", "calibration batch 0 must be"),
        ("targets", "calibration batch 0 has 8 samples and 3 targets"),
        ("untraceable", "cannot be traced by torch.export"),
        ("no layer", "no layer that can be quantised"),
        ("infinite output", "the model's output on calibration batch 0 holds"),
        ("no classes", r"holds no class scores .* divergence\(output, float_output\)"),
        ("metric", r"metric\(\) failed: KeyError: 'top1'"),
        ("metric length", r"metric\(\) must return one value per sample, \[8\], not \[\]"),
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
    assert r"loss() failed: ZeroDivisionError: after a while" in refused("score", *TINY, "--value", "loss", "--out", out)
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


@pytest.fixture
def cifar(tmp_path):
    """Arguments of a search on made-up CIFAR-10 files, and the weights file."""
    data = tmp_path / "cifar-10-batches-py"
    data.mkdir()
    for seed, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        write_batch(data / name, seed)
    weights = tmp_path / "weights.safetensors"
    save_file(ResNet20().state_dict(), weights)
    return ["score", "--task", "cifar10-resnet20", "--data", data, "--out", tmp_path / "run"], weights


def test_data(cifar, tmp_path):
    arguments, weights = cifar
    assert "--data" in refused(*arguments[:3], "--weights", weights, "--out", tmp_path / "run")
    assert "nowhere" in refused(*arguments, "--data", tmp_path / "nowhere", "--weights", weights)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80\x02}q")
    assert "data_batch_3" in refused(*arguments, "--weights", weights)
    assert not (tmp_path / "run").exists()


def test_weights(cifar, tmp_path):
    arguments, weights = cifar
    assert "--weights" in refused(*arguments)
    assert "there is no weights file" in refused(*arguments, "--weights", tmp_path / "nowhere.safetensors")
    state = ResNet20().state_dict()
    name = next(key for key, tensor in state.items() if tensor.dim() == 4)
    cases = {
        "has shape [7], the model wants": {**state, name: torch.zeros(7)},
        "has no tensor": {key: tensor for key, tensor in state.items() if key != name},
        "holds 'extra' and the model does not": {**state, "extra": torch.zeros(1)},
        "holds NaN": {**state, name: torch.full_like(state[name], float("nan"))},
    }
    for message, tensors in cases.items():
        save_file(tensors, weights)
        assert message in refused(*arguments, "--weights", weights)
    save_file(state, weights)
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "as safetensors" in refused(*arguments, "--weights", weights)
    text = tmp_path / "weights.pt"
    text.write_text("these are not weights")
    assert "torch.load(weights_only=True)" in refused(*arguments, "--weights", text)
    assert not (tmp_path / "run").exists()


# Budgets that cannot be.


def test_an_impossible_budget_names_the_nearest_point_and_keeps_the_old_plan(run):
    before = contents(run)
    for command in (["solve", run], ["run", *TINY, "--out", run]):
        message = refused(*command, "--budget", "size=0.001x")
        assert_matches(r"no policy meets the budget; the nearest one has size \d+ \(0\.\d+x of float\), wanted at most", message)
    assert contents(run) == before
    done(*filled(SOLVE, run=run))


def test_an_impossible_budget_is_refused_before_anything_is_scored(tmp_path):
    refused("run", *TINY, "--out", tmp_path / "run", "--budget", "avg_bits=1")
    assert not (tmp_path / "run" / "scores.json").exists()
    assert not (tmp_path / "run" / "policy.json").exists()


@pytest.mark.parametrize("target", ["simulate", "tensorrt-rtx"])
def test_a_latency_budget_where_nothing_can_be_timed(tmp_path, target):
    arguments = ["run", *TINY, "--target", target, "--out", tmp_path / "run"]
    assert f"latency cannot be measured on target {target}" in refused(*arguments, "--budget", "latency=0.5x")
    assert not (tmp_path / "run" / "scores.json").exists()


def test_a_latency_budget_before_anything_was_measured(run):
    (run / "measurements.json").unlink()
    before = contents(run)
    assert "has measured no engine yet" in refused("solve", run, "--budget", "latency=0.5x")
    assert contents(run) == before
    done(*filled(SOLVE, run=run))


# Files of a run that were cut off or edited: the message names the file, and doing what it says repairs the run.

BUILD, REPORT = ("build", "{run}"), ("report", "{run}")
FILES = [
    ("run.json", SOLVE, None),
    ("scores.json", SOLVE, "score"),
    ("policy.json", ("export", "{run}"), SOLVE),
    ("budget.json", REPORT, SOLVE),
    ("measurements.json", ("measure", "{run}"), None),
    ("measurements.json", ("solve", "{run}", "--budget", "latency=3x"), ("measure", "{run}")),
    ("build.json", ("measure", "{run}"), BUILD),
    ("export.json", BUILD, ("export", "{run}")),
    ("latency.json", REPORT, ("measure", "{run}")),
    ("verify.json", REPORT, ("verify", "{run}")),
    ("engine.json", ("measure", "{run}"), BUILD),
    ("engine.ort-cpu.onnx", ("measure", "{run}"), BUILD),
    ("engine.ort-cpu.onnx", ("verify", "{run}"), BUILD),
    ("model.float.onnx", ("export", "{run}"), None),
    ("model.ort-cpu.onnx", BUILD, ("export", "{run}")),
    ("model.ort-cpu.onnx", ("verify", "{run}"), ("export", "{run}")),
]


@pytest.mark.parametrize(("name", "command", "repair"), FILES)
def test_a_file_that_was_cut_off(run, good_run, name, command, repair):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = contents(run)
    assert name in refused(*filled(command, run=run))
    assert contents(run) == before
    if name == "run.json":  # nothing can make this one again from the rest
        path.write_bytes((good_run / name).read_bytes())
    elif path.suffix != ".onnx" or repair is None:
        path.unlink()
    if repair is not None:
        done(*(["score", *TINY, "--out", run] if repair == "score" else filled(repair, run=run)))
    done(*filled(command, run=run))


@pytest.mark.parametrize("name", ["run.json", "scores.json", "policy.json", "budget.json", "build.json", "measurements.json"])
@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_file_that_holds_something_else(run, name, text):
    (run / name).write_text(text)
    before = contents(run)
    command = ["report", run] if name in {"run.json", "budget.json", "policy.json", "build.json"} else None
    command = command or (["solve", run, "--budget", "latency=3x" if name == "measurements.json" else "avg_bits=8"])
    message = refused(*command)
    assert name.partition(".")[0] in message
    assert contents(run) == before


@pytest.mark.parametrize("keep", [10, 4096, 6000])
def test_a_journal_that_was_cut_off(tmp_path, keep):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out)
    journal = out / "journal.sqlite"
    journal.write_bytes(journal.read_bytes()[:keep])
    (out / "scores.json").unlink()
    assert "journal.sqlite cannot be read" in refused("score", *TINY, "--out", out)
    journal.unlink()
    done("score", *TINY, "--out", out)


def edit_policy(run, change):
    record = json.loads((run / "policy.json").read_text())
    change(record["policy"])
    (run / "policy.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.update({"third": "w8a8"}), "no quantisable layer 'third'; the first ones are first"),
        (lambda policy: policy.update({"first": "w1a1"}), "weights of 1 bits"),
        (lambda policy: policy.update({"first": "int8"}), "unknown format 'int8'"),
        (lambda policy: policy.update({"first": 8}), "the format of first must be a text such as w8a8, not 8"),
        (lambda policy: policy.pop("second"), "does not name second"),
        (lambda policy: policy.update({"second": "w3a8"}), "gives second the format w3a8: .*; it may have"),
    ],
)
def test_a_policy_edited_by_hand(run, change, message):
    edit_policy(run, change)
    before = contents(run)
    assert_matches(message, refused("export", run))
    assert contents(run) == before


@pytest.mark.parametrize("command", ["build", "measure", "verify", "report"])
def test_a_policy_edited_by_hand_is_checked_by_every_stage(run, command):
    good = (run / "policy.json").read_bytes()
    edit_policy(run, lambda policy: policy.update({"third": "w8a8"}))
    before = contents(run)
    assert "no quantisable layer 'third'" in refused(command, run)
    assert contents(run) == before
    (run / "policy.json").write_bytes(good)
    done(command, run)


def test_a_policy_that_the_target_refuses_is_told_why(tmp_path):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out, "--formats", "w8a8,w3a8,fp32")
    done("solve", out, "--budget", "avg_bits=32")
    edit_policy(out, lambda policy: policy.update({"second": "w3a8"}))
    message = refused("export", out)
    assert "the format w3a8: it is not in this run" not in message
    assert "it may have w8a8, fp32" in message


# Stages out of order.


def test_stages_before_their_time(tmp_path):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out)
    before = contents(out)
    for command in ("export", "build", "report"):
        assert "policy.json is missing: make one with smpq solve" in refused(command, out)
    assert contents(out) == before
    done("solve", out, "--budget", "avg_bits=8")
    before = contents(out)
    assert "model.ort-cpu.onnx is missing: make it with smpq export" in refused("build", out)
    assert "model.ort-cpu.onnx is missing: make it with smpq export" in refused("verify", out)
    assert "use smpq export and smpq build first" in refused("measure", out)
    assert contents(out, without=["model.float.onnx"]) == before
    done("export", out)
    assert "no engine of the policy in policy.json" in refused("verify", out)
    done("build", out)
    done("verify", out)


def test_files_of_an_earlier_policy_are_not_taken_for_this_one(run):
    edit_policy(run, lambda policy: policy.update({"first": "fp32", "second": "fp32", "head": "fp32"}))
    before = contents(run)
    assert "is not of the policy in policy.json: use smpq export first" in refused("build", run)
    assert "is not of the policy in policy.json: use smpq export first" in refused("verify", run)
    assert "use smpq export and smpq build first" in refused("measure", run)
    assert contents(run) == before
    for command in ("export", "build", "verify"):
        done(command, run)


def test_measuring_what_cannot_be_measured_here(tmp_path):
    out = tmp_path / "run"
    done("run", *TINY, "--target", "simulate", "--formats", "w4a8,w8a8", "--budget", "avg_bits=6", "--out", out)
    assert "measuring on target simulate" in refused("measure", out)


# The installed command itself.


def test_the_real_process(tmp_path, run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", FAULT: "nan weights"}
    before = contents(run)
    command = [sys.executable, "-m", "cli", "verify", str(run)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "error: 'second.weight' of the model holds NaN: correct it first, quantisation would spread it\n"
    assert contents(run) == before
