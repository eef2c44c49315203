"""The whole job with another machine as the device, over a real ssh server whose connections are cut while it measures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.latency.measure import machine
from tests.conftest import ROOT
from tests.deploy.devices.sshd import serving
from tests.deploy.devices.test_ssh import runners

CUTS = 3
JOB = [
    "run", "--task", "digits", "--target", "ort-cpu", "--budget", "latency=0.8x", "--formats", "w8a8,fp32", "--effort", "fast",
    "--evaluations", "20", "--samples", "64",
]  # fmt: skip


@pytest.fixture
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def directory_there(run: Path) -> Path:
    fingerprint = json.loads((run / "run.json").read_text())["fingerprint"]
    return Path.home() / ".cache" / "smpq" / fingerprint[:16]


def measured(log: str) -> list[str]:
    return [line.split()[3] for line in log.splitlines() if line.split()[2] == "measured"]


@pytest.mark.slow
def test_the_whole_job_goes_on_after_three_cuts_and_measures_nothing_twice(server, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "cli", *JOB, "--out", run, "--device", server.address]
    environment = {**os.environ, "SMPQ_SSH_OPTIONS": server.options, "OMP_NUM_THREADS": "1"}
    log, cuts = None, []
    with (tmp_path / "errors").open("w+") as errors:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            while process.poll() is None:
                time.sleep(0.02)
                if log is None:
                    log = opened(run)
                    continue
                log.seek(0)
                # each time while a runner is at work, a few engines later
                if len(cuts) < CUTS and len(measured(log.read())) >= 2 * len(cuts) and runners(directory_there(run)):
                    cuts.append(server.cut_connections())
            output = process.stdout.read()
        errors.seek(0)
        told = errors.read()
    assert process.returncode in (0, 1), told
    assert "report.html" in output
    assert len(cuts) == CUTS
    assert sum("trying again" in line for line in told.splitlines()) >= CUTS
    log.seek(0)
    results = json.loads((run / "device" / "measurements.json").read_text())["results"]
    assert len(measured(log.read())) == len({result["key"] for result in results}) == len(results), "each once"
    log.close()
    latency = json.loads((run / "latency.json").read_text())
    assert latency["machine"] == machine()
    steps = json.loads((run / "loop.json").read_text())["steps"]
    assert len(steps) >= 3
    assert all(step["measured"] is not None for step in steps)
    assert not directory_there(run).exists(), "nothing is left on the device"
    assert not runners(directory_there(run))


def opened(run: Path):
    """Open the log of the runner as soon as there is one; what is written to it can be read even when it has been removed."""
    try:
        return (directory_there(run) / "runner.log").open()
    except OSError:
        return None


@pytest.fixture(autouse=True)
def _nothing_left_by_another_run(tmp_path):
    yield
    if (tmp_path / "run" / "run.json").is_file():
        shutil.rmtree(directory_there(tmp_path / "run"), ignore_errors=True)
