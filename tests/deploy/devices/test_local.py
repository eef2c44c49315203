"""This machine as the device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.errors import UserError
from deploy.devices.local import LocalDevice
from deploy.latency.measure import machine
from tests.deploy.experiments import broken_candidate, experiment


def test_candidates_are_measured_once_and_read_where_they_are(tmp_path):
    wanted = experiment(tmp_path / "models", (32, 4))
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
    with pytest.raises(UserError, match="cannot be written"):
        LocalDevice(tmp_path / "run").measure(experiment(tmp_path / "models"))
