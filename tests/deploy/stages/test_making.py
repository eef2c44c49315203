"""Engines that only the device can build: the whole job, on a board that is none. Nothing here was run on hardware."""

from __future__ import annotations

import json

import onnx
import pytest
from rich.console import Console

from calib.errors import UserError
from deploy.devices.base import Experiment
from deploy.pipeline import open_run, run_all
from deploy.progress import Progress
from deploy.run.settings import Settings
from deploy.stages import build, read_policy, verify
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.board import FASTER, Board

ORIN = "ssh://me@orin"
QUIET = Progress(Console(quiet=True))


def settings(target: str, formats: str) -> Settings:
    return Settings("tests.tiny_task:task", target, formats=formats, samples=16, evaluations=12, effort="fast")


def read(file):
    return json.loads(file.read_text())


@pytest.fixture
def board(monkeypatch):
    made = Board(FASTER)
    monkeypatch.setattr("deploy.prepare.device_from_address", lambda address, directory: made)
    return made


def test_tensorrt_builds_on_the_device_and_the_job_goes_on_to_its_end(tmp_path, board):
    run = tmp_path / "run"
    report = run_all(run, settings("jetson-orin", "w8a8,fp16"), "latency=0.75x", QUIET, device=ORIN)
    assert report.met
    assert report.engine is None
    assert list(run.glob("engine*")) == list(run.glob("*.plan")) == []
    for experiment in board.experiments:
        check_experiment(experiment)
    built = read(run / "build.json")
    assert (built["built_on"], built["engines"]) == ("a board", {})
    planned = read(run / "policy.json")["policy"]
    assert planned["second"] == "w8a8"
    assert {path: kernel["kernel"] for path, kernel in built["kernels"].items() if planned[path] == "w8a8"} == {"second": "int8"}
    engine = read(run / "verify.json")["stages"]["engine"]
    assert engine["not_run"] == "it was built on a board, which does not have the evaluation data"
    assert read(run / "latency.json")["measurement"]["ratio"] == pytest.approx(0.7)

    with open_run(run, QUIET) as prepared:  # another day, without the device
        verify(prepared, read_policy(prepared))
        with pytest.raises(UserError, match="its engines are built on the device"):
            build(prepared, read_policy(prepared))


def check_experiment(experiment: Experiment) -> None:
    """What a device needs: the runtime builds with its usual settings, for its own GPU, graphs of the run's batch size."""
    assert experiment.runtime == "tensorrt"
    for candidate in (experiment.float_, *experiment.candidates):
        assert candidate.settings == {}
        shape = onnx.load(candidate.model).graph.input[0].type.tensor_type.shape.dim
        assert [dimension.dim_value for dimension in shape] == [1, 1, 6, 6]
    assert experiment.inputs["x"].shape == (1, 1, 6, 6)


def test_a_provider_that_is_missing_here_is_that_of_the_device(tmp_path, board):
    with open_run(tmp_path / "cuda", QUIET, settings("ort-tensorrt", "w8a8,fp16"), device=ORIN) as prepared:
        assert prepared.builds_on_device
        assert prepared.not_measurable is None
    with open_run(tmp_path / "cpu", QUIET, settings("ort-cpu", "w8a8,fp32"), device=ORIN) as prepared:
        assert not prepared.builds_on_device
    with open_run(tmp_path / "here", QUIET, settings("ort-tensorrt", "w8a8,fp16")) as prepared:
        assert not prepared.builds_on_device
        assert prepared.not_measurable.startswith("this onnxruntime is built without TensorrtExecutionProvider")


@needs_rtx
def test_a_build_that_was_stopped_repeats_no_plan(tmp_path):
    run, target = tmp_path / "run", settings("tensorrt-rtx", "w8a8,fp16")
    run_all(run, target, "size=0.6x", QUIET)
    names = ["engine.tensorrt-rtx.sm86.plan", "engine.float.sm86.plan"]
    plans = {name: (run / name).read_bytes() for name in names}
    assert not any(engine["from_cache"] for name, engine in read(run / "build.json")["engines"].items() if name == names[0])
    for name in names:
        (run / name).unlink()
    with open_run(run, QUIET) as prepared:
        record = build(prepared, read_policy(prepared))
    assert all(engine.from_cache for engine in record.engines.values())
    assert {name: (run / name).read_bytes() for name in names} == plans
    assert {kernel.agrees for kernel in record.kernels.values()} == {True}
