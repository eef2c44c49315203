"""Engines that fail while they are timed, and disks that are full."""

from __future__ import annotations

import json

import msgspec
import pytest

from deploy.devices.base import Result
from deploy.devices.bundle import write_bundle
from deploy.runner import bench as module
from deploy.runner.errors import BuildError, CudaError
from deploy.runner.main import main, run_experiment
from tests.deploy.experiments import experiment


@pytest.fixture
def wanted(tmp_path):
    return experiment(tmp_path / "models", (4, 32))


@pytest.fixture
def directory(wanted, tmp_path):
    write_bundle(wanted, tmp_path / "bundle")
    return tmp_path / "bundle"


class Failing:
    """An engine that runs `good` times and fails from then on, as after an error of CUDA."""

    def __init__(self, engine, error, good):
        self._engine, self._error, self._good = engine, error, good

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def time(self, repeats):
        if self._good == 0:
            raise self._error
        self._good -= 1
        return self._engine.time(repeats)


def failing(monkeypatch, error, good, models):
    def opener(model, *arguments):
        engine = module.open_ort_engine(model, *arguments)
        return Failing(engine, error, good) if model.stem in models else engine

    monkeypatch.setattr(module, "OPENERS", {"onnxruntime": opener})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CudaError("cudaErrorIllegalAddress"), "the runtime failed: CudaError: cudaErrorIllegalAddress"),
        (RuntimeError("first line\nsecond line"), "the runtime failed: RuntimeError: first line"),
        (BuildError("layer block.double refused", "log", ("block.double/Q",)), "layer block.double refused"),
    ],
)
def test_an_engine_that_fails_while_it_is_timed_is_one_failure(directory, wanted, monkeypatch, error, reason):
    failing(monkeypatch, error, 2, [wanted.candidates[0].name])
    first, second = run_experiment(directory, str)["results"]
    assert first["failed"] == reason
    assert first["nodes"] == (["block.double/Q"] if isinstance(error, BuildError) else [])
    assert first["ratio"] is None
    assert (second["failed"], second["nodes"]) == (None, [])
    assert msgspec.convert(first, Result).nodes == tuple(first["nodes"])


def test_a_float_engine_that_no_longer_runs_ends_the_runner_with_everything_kept(
    directory, wanted, monkeypatch, capsys
):
    """What CUDA does not get over: the first engine fails, and all others of the process with it."""
    failing(monkeypatch, CudaError("cudaErrorIllegalAddress"), 1, [wanted.float_.name, wanted.candidates[0].name])
    assert main([str(directory)]) == 2
    assert (
        "the float engine does not run (the runtime failed: CudaError: cudaErrorIllegalAddress): start again"
        in capsys.readouterr().err
    )
    (entry,) = json.loads((directory / "measurements.json").read_text())["results"]
    assert (entry["name"], entry["failed"]) == (
        wanted.candidates[0].name,
        "the runtime failed: CudaError: cudaErrorIllegalAddress",
    )
    monkeypatch.undo()
    first, second = run_experiment(directory, str)["results"]
    assert first == entry
    assert second["failed"] is None


def test_a_full_disk_is_no_fault_of_a_candidate(directory, wanted, monkeypatch):
    failing(monkeypatch, OSError(28, "No space left on device"), 0, [wanted.candidates[0].name])
    with pytest.raises(OSError, match="No space left"):
        run_experiment(directory, str)
    assert not (directory / "measurements.json").exists()
