"""This machine as the device."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from calib.errors import UserError
from deploy.devices.local import LocalDevice
from deploy.runner import bench
from deploy.runner.state import machine
from tests.deploy.experiments import broken_candidate, experiment


def test_candidates_are_measured_once_and_read_where_they_are(tmp_path):
    wanted = experiment(tmp_path / "models", (256, 1))
    device, lines = LocalDevice(tmp_path / "run" / "device"), []
    slow, fast = device.measure(wanted, lines.append)
    assert fast.ratio < 1.0 < slow.ratio
    assert (slow.name, fast.name) == tuple(c.name for c in wanted.candidates)
    assert not list((tmp_path / "run").rglob("*.onnx"))
    again = LocalDevice(tmp_path / "run" / "device").measure(replace(wanted, candidates=wanted.candidates[::-1]))
    assert again == [fast, slow]
    device.close()


def test_a_failure_is_a_result(tmp_path):
    wanted = replace(experiment(tmp_path / "models"), candidates=(broken_candidate(tmp_path),))
    (result,) = LocalDevice(tmp_path / "run").measure(wanted)
    assert result.cause == "refused"
    assert "Protobuf parsing failed" in result.failed


def test_what_somebody_has_to_change_is_a_user_error(tmp_path):
    device = LocalDevice(tmp_path / "run")
    with pytest.raises(UserError, match="abacus"):
        device.measure(replace(experiment(tmp_path / "models"), runtime="abacus"))
    wanted = experiment(tmp_path / "models")
    wanted.float_.model.unlink()
    with pytest.raises(UserError, match="is missing"):
        device.measure(wanted)


def test_its_name(tmp_path):
    assert LocalDevice(tmp_path).describe() == machine()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file where the directory should be")
    with pytest.raises(UserError, match="cannot write"):
        LocalDevice(tmp_path / "run").measure(experiment(tmp_path / "models"))


def test_each_machine_has_a_directory_of_its_own(tmp_path, monkeypatch):
    wanted = experiment(tmp_path / "models", (4,))
    here = LocalDevice(tmp_path / "run").measure(wanted)
    for name in ("board (MAXN), Linux aarch64", "board (30W), Linux aarch64"):
        monkeypatch.setattr("deploy.devices.local.machine", lambda name=name: name)
        monkeypatch.setattr("deploy.runner.main.machine", lambda name=name: name)
        LocalDevice(tmp_path / "run").measure(wanted)
    monkeypatch.undo()
    lines = []
    assert LocalDevice(tmp_path / "run").measure(wanted, lines.append) == here
    assert lines == ["1 of 1 candidates are measured already"]
    assert len(list((tmp_path / "run").glob("*/measurements.json"))) == 3
    assert len(list((tmp_path / "run").glob("board-MAXN-Linux-aarch64-*"))) == 1


def test_what_is_known_is_told_without_measuring(tmp_path):
    wanted = experiment(tmp_path / "models", (4, 32))
    device = LocalDevice(tmp_path / "run")
    assert device.known(wanted) == []
    (first,) = device.measure(replace(wanted, candidates=wanted.candidates[:1]))
    assert LocalDevice(tmp_path / "run").known(wanted) == [first]
    assert device.known(replace(wanted, seed=wanted.seed + 1)) == []
    assert device.known(replace(wanted, fingerprint="0" * 64)) == []


def test_it_measures_in_the_process_of_the_run_which_anybody_may_end(tmp_path, monkeypatch):
    wanted, noted = experiment(tmp_path / "models", (4,)), []

    def opener(*arguments):
        noted.extend(json.loads(file.read_text())["alone"] for file in (tmp_path / "run").rglob("started.json"))
        return bench.open_ort_engine(*arguments)

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})
    LocalDevice(tmp_path / "run").measure(wanted)
    assert noted == [True]


def test_an_engine_that_ran_out_of_memory_is_an_error_and_measured_again(tmp_path, monkeypatch):
    wanted = experiment(tmp_path / "models", (4, 32))
    errors = [MemoryError("std::bad_alloc")] * 2

    def opener(model, *others):
        if model == model.parent / wanted.candidates[1].model.name and errors:
            raise errors.pop()
        return bench.open_ort_engine(model, *others)

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})
    device = LocalDevice(tmp_path / "run")
    with pytest.raises(UserError, match=r"failed over the engine \w+, for the moment \(MemoryError: std::bad_alloc\)"):
        device.measure(wanted)
    lines = []
    assert [result.failed for result in device.measure(wanted, lines.append)] == [None, None]
    assert lines[0] == "1 of 2 candidates are measured already"
