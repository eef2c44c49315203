"""`smpq profile` on runs: it reads what was measured, and measures what was not."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from calib.errors import UserError
from deploy.devices.bundle import asked_of
from deploy.devices.checks import keys_of
from deploy.devices.known import keep_results
from deploy.devices.messages import DeviceResults, Hardware
from deploy.devices.places import machine_directory
from deploy.latency.bench import FINAL
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.run.trust import remember
from deploy.run.workspace import DEVICE
from deploy.stages.choosing import solve
from deploy.stages.making import build, export, measure
from deploy.stages.policies import read_policy
from deploy.stages.profiling import profile
from deploy.stages.run_all import open_run
from deploy.stages.scoring import score
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.commands import done, refused
from tests.deploy.board import FASTER, Board
from tests.deploy.report.profile_sample import layer, result

QUIET = Progress(Console(quiet=True))
ORIN = "ssh://me@orin"
UNKNOWN = Hardware(gpu=None, jetson_release=None, power_mode=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run for an Orin, measured on a board that is none, which keeps nothing here."""
    path = tmp_path_factory.mktemp("profiled") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.run.opening.device_from_address", lambda address, directory: Board(FASTER))
        settings = Settings(
            "tests.tiny_task:task", "jetson-orin", formats="w8a8,fp16", samples=16, evaluations=12, effort="fast"
        )
        with open_run(path, QUIET, settings, device=ORIN) as workspace:
            score(workspace)
            policy = solve(workspace, Budget.from_text("size=0.3x")).policy
            export(workspace, policy)
            build(workspace, policy)
            measure(workspace, policy)
    return path


def test_a_device_is_asked_for_what_is_not_known(run, monkeypatch):
    board = Board(FASTER)
    monkeypatch.setattr("deploy.run.opening.device_from_address", lambda address, directory: board)
    remember(run, Run(run).settings(), QUIET)
    record = json.loads(done("profile", run, "--device", ORIN, "--json").out)
    assert len(board.asked) == 1
    assert record == json.loads((run / "profile.json").read_text())
    assert record["machine"] == "a board"
    assert {tuple(kernel["units"]) for kernel in record["kernels"] if kernel["role"] == "layer"} >= {("second",)}
    assert record["units"]["second"]["found"] == "int8"
    lines = done("profile", run, "--device", ORIN).out.splitlines()
    assert lines[-1] == f"picture: {run / 'profile.svg'}"
    assert ET.fromstring((run / "profile.svg").read_text()).get("role") == "img"


def test_what_was_measured_with_layers_is_read(run):
    """Another day, without the device."""
    with open_run(run, QUIET) as workspace:
        bench, policy = workspace.bench, read_policy(workspace)
        asked = asked_of(bench.experiment([workspace.candidates.kept(run / workspace.backend.names.model)], FINAL))
        ((key, name),) = keys_of(asked).items()
        known = result((layer("CaskConvolution", "c", "Int8", "Int8", ("second",), 0.5, "Int8"),), key=key, name=name)
        about = {
            "fingerprint": asked.fingerprint,
            "runtime": asked.runtime,
            "versions": {},
            "machine": "a board",
            "hardware": UNKNOWN,
        }
        keep_results(machine_directory(run / DEVICE, "a board"), DeviceResults(**about, results=(known,)), {key: known})
        record = profile(workspace, policy)
    assert (record.profiled_ms, record.enqueue_ms, record.launch_share) == (0.5, 0.25, 0.25)
    assert record.kernels[0].kind == "CaskConvolution"


def test_a_machine_without_a_gpu_says_where_to_measure(run):
    with open_run(run, QUIET) as workspace:
        place = machine_directory(run / DEVICE, "a board")
        for file in place.glob("measurements.json"):
            file.unlink()
        with pytest.raises(UserError, match=r"--device.* smpq bundle"):
            profile(workspace, read_policy(workspace))


def test_a_model_that_was_not_exported(run):
    model = run / "model.jetson-orin.onnx"
    content = model.read_bytes()
    model.write_bytes(b"another")
    try:
        with open_run(run, QUIET) as workspace, pytest.raises(UserError, match="use smpq export again"):
            profile(workspace, read_policy(workspace))
    finally:
        model.write_bytes(content)


def test_the_command_on_a_target_of_onnx_runtime(good_run):
    message = refused("profile", good_run)
    assert "an engine of ort-cpu runs in ONNX Runtime: smpq build names the kernel of each layer" in message
    assert not (good_run / "profile.json").exists()
