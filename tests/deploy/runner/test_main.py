"""The program that measures an experiment: what it writes, what it does not repeat, and what it says when something is
wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.devices.bundle import write_bundle
from deploy.runner import bench as module
from deploy.runner.errors import DeviceError
from deploy.runner.experiment import SCHEMA
from deploy.runner.main import list_candidates, main, run_experiment
from deploy.runner.protocol import Protocol
from deploy.runner.state import machine
from tests.deploy.experiments import broken_candidate, candidate, experiment, model_file


@pytest.fixture
def wanted(tmp_path):
    return experiment(tmp_path / "models", (4, 32))


@pytest.fixture
def directory(wanted, tmp_path):
    write_bundle(wanted, tmp_path / "bundle")
    return tmp_path / "bundle"


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def measured(lines):
    return [line.split()[1].rstrip(":") for line in lines if line.startswith("measured")]


def test_what_is_written(directory, wanted):
    lines = []
    record = run_experiment(directory, lines.append)
    assert json.loads((directory / "measurements.json").read_text()) == record
    assert (record["schema"], record["fingerprint"], record["runtime"]) == (SCHEMA, wanted.fingerprint, "onnxruntime")
    assert record["machine"] == machine()
    assert set(record["versions"]) == {"python", "numpy", "onnxruntime"}
    assert record["hardware"] == {"gpu": None, "jetson_release": None, "power_mode": None}
    assert measured(lines) == [entry["name"] for entry in record["results"]] == [c.name for c in wanted.candidates]
    for entry in record["results"]:
        assert entry["failed"] is None
        assert (entry["clock"], entry["batch"], entry["layers"]) == ("thread CPU time", 1, None)
        assert entry["ratio_interval"][0] <= entry["ratio"] <= entry["ratio_interval"][1]
        assert len(entry["rounds_ms"]) == len(entry["float_rounds_ms"]) == wanted.protocol.rounds
        assert entry["throughput"] == pytest.approx(1000 / entry["engine_ms"])
        assert (
            entry["p99_ms"] > 0
        )  # and not more than engine_ms: the two are timed one after the other, at whatever clock there is
        assert (entry["p99_calls"], entry["p99_note"]) == (200, None)
        assert entry["build_seconds"] >= 0
        assert (entry["enqueue_ms"], entry["hot_ms"], entry["cold_ms"], entry["notes"]) == (None, None, None, [])
        assert set(entry["state"]) == {"before", "after", "throttled", "timings"}


def test_nothing_is_measured_twice(directory):
    first, lines = run_experiment(directory, str), []
    assert run_experiment(directory, lines.append) == first
    assert lines == ["2 of 2 candidates are measured already"]


def test_a_killed_run_loses_one_candidate_at_most(directory, wanted):
    def kill(line):
        if line.startswith("measured"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(directory, kill)
    lines = []
    run_experiment(directory, lines.append)
    assert measured(lines) == [wanted.candidates[1].name]


def test_what_the_figures_depend_on_is_measured_again(directory, wanted, tmp_path):
    run_experiment(directory, str)
    other_settings = replace(
        wanted.candidates[0], settings={**wanted.candidates[0].settings, "session_config": {"a.b": "1"}}
    )
    for changed in (
        replace(wanted, batch=2),
        replace(wanted, protocol=Protocol(rounds=6, round_ms=1.0, calls=2)),
        replace(wanted, inputs={"x": wanted.inputs["x"] + 1}),
        replace(wanted, float_=candidate(model_file(tmp_path, 17))),
        replace(wanted, candidates=(other_settings,)),
    ):
        write_bundle(changed, directory)
        lines = []
        run_experiment(directory, lines.append)
        assert measured(lines) == [c.name for c in changed.candidates]
    write_bundle(wanted, directory)
    lines = []
    run_experiment(directory, lines.append)
    assert measured(lines) == [], "the first results are still there"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"machine": "another board"}, "another machine (another board"),
        ({"fingerprint": "f" * 64}, "another fingerprint"),
        ({"versions": {"onnxruntime": "0.1"}}, "another version of onnxruntime (0.1"),
    ],
)
def test_results_from_elsewhere_are_not_taken(directory, values, message):
    run_experiment(directory, str)
    change(directory / "measurements.json", **values)
    lines = []
    record = run_experiment(directory, lines.append)
    assert message in lines[0]
    assert len(measured(lines)) == len(record["results"]) == 2


def test_a_candidate_that_does_not_build_is_a_result(wanted, tmp_path):
    broken = broken_candidate(tmp_path)
    write_bundle(replace(wanted, candidates=(broken, *wanted.candidates)), tmp_path / "bundle")
    lines = []
    first, *others = run_experiment(tmp_path / "bundle", lines.append)["results"]
    assert "Protobuf parsing failed" in first["failed"]
    assert first["ratio"] is first["clock"] is None
    assert all(entry["failed"] is None for entry in others)
    assert lines[1].startswith(f"failed   {broken.name}: ")
    run_experiment(tmp_path / "bundle", lines.append)
    assert len([line for line in lines if line.startswith("failed")]) == 1, "a failure is not repeated either"


def test_a_candidate_that_kills_the_runner_is_given_up(directory, wanted, monkeypatch):
    """As when memory runs out: the process is gone, and no `finally` has run."""
    deadly = wanted.candidates[0].name
    program = f"""
import os, sys
from pathlib import Path
from deploy.runner import bench, main, ort
def open_engine(model, settings, inputs, cache):
    if model.stem == {deadly!r}:
        os._exit(137)
    return ort.open_ort_engine(model, settings, inputs, cache)
bench.OPENERS = {{"onnxruntime": open_engine}}
sys.exit(main.main([sys.argv[1]]))
"""
    codes = [subprocess.run([sys.executable, "-c", program, directory], check=False).returncode for _ in range(3)]
    assert codes == [137, 137, 0]
    first, second = json.loads((directory / "measurements.json").read_text())["results"]
    assert "died 2 times" in first["failed"]
    assert second["failed"] is None
    assert not (directory / "started.json").exists()


def test_engines_that_cannot_be_compared_are_a_bug(directory, monkeypatch):
    opened = []

    def opener(*arguments):
        engine = module.open_ort_engine(*arguments)
        engine.clock = f"clock {len(opened)}"
        opened.append(engine)
        return engine

    monkeypatch.setattr(module, "OPENERS", {"onnxruntime": opener})
    for index, entry in enumerate(run_experiment(directory, str)["results"], start=1):
        assert f"engines with different clocks cannot be compared: clock 0, clock {index}" in entry["failed"]
        assert entry["cause"] == "internal", "nothing is concluded from it about the model"


def test_two_runners_take_turns(directory):
    lines, records = [], []
    threads = [
        threading.Thread(target=lambda: records.append(run_experiment(directory, lines.append))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records[0] == records[1]
    assert len(measured(lines)) == 2
    assert "another runner is at work in this directory: waiting for it" in lines


def test_only_one_and_the_list(directory, wanted, capsys):
    first, second = (c.name for c in wanted.candidates)
    assert main([str(directory), "--only", second]) == 0
    assert measured(capsys.readouterr().out.splitlines()) == [second]
    assert main([str(directory), "--list"]) == 0
    waiting, known = capsys.readouterr().out.splitlines()
    assert waiting == f"waiting  {first}"
    assert known.startswith(f"measured {second}: ")
    assert list_candidates(directory) == [waiting, known]
    assert main([str(directory), "--only", "nothing"]) == 2
    assert "there is no candidate nothing" in capsys.readouterr().err


def test_the_log_goes_on_when_nobody_listens(directory, monkeypatch):
    class Closed:
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main([str(directory)]) == 0
    assert len((directory / "runner.log").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "experiment.json").unlink(), "there is no"),
        (lambda d: (d / "experiment.json").write_text("{"), "write the bundle again"),
        (lambda d: (d / "experiment.json").write_text("[]"), "is no object"),
        (lambda d: change(d / "experiment.json", schema=9), "schema 9"),
        (lambda d: change(d / "experiment.json", batch="1"), "batch missing or of the wrong type"),
        (
            lambda d: change(d / "experiment.json", protocol={}),
            "rounds, round_ms, calls, singles, sets, seconds missing",
        ),
        (lambda d: change(d / "experiment.json", candidates=[{"name": "a"}]), "model, settings missing"),
        (lambda d: change(d / "experiment.json", runtime="abacus"), "abacus"),
        (lambda d: change(d / "experiment.json", inputs="other.npz"), "copy the whole directory again"),
        (lambda d: next(d.glob("*.npz")).write_bytes(b"PK"), "copy the whole directory again"),
        (lambda d: next(d.glob("*.onnx")).unlink(), "is missing: copy the whole directory again"),
        (lambda d: (d / "measurements.json").write_text("{"), "delete it to measure again"),
        (lambda d: (d / "measurements.json").write_text('{"schema": 1}'), "delete it to measure again"),
    ],
)
def test_what_somebody_has_to_change(directory, break_it, message, capsys):
    break_it(directory)
    with pytest.raises(DeviceError, match=message):
        run_experiment(directory, str)
    assert main([str(directory)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_ctrl_c_is_told_in_a_line(directory, wanted, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "measure_engines", stopped)
        assert main([str(directory)]) == 130
    assert capsys.readouterr().err == "stopped; what was measured is kept, the same command goes on from there\n"
    assert main([str(directory), "--only", wanted.candidates[0].name]) == 0


def test_a_float_engine_that_does_not_build(wanted, tmp_path):
    write_bundle(replace(wanted, float_=broken_candidate(tmp_path)), tmp_path / "bundle")
    with pytest.raises(DeviceError, match="nothing to compare with"):
        run_experiment(tmp_path / "bundle", str)


def test_a_missing_module(directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(directory)]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err
