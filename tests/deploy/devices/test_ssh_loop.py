"""The whole job with another machine as the device, over a real ssh server: connections are cut, and commands are
stopped.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from deploy.runner.state import machine
from tests.deploy.devices.servers import SERVERS, Server, serving
from tests.deploy.devices.test_ssh import runners
from tests.warm import Process

CUTS = 3
JOB = [
    "run", "--task", "tests.trainable_task:task", "--target", "ort-cpu", "--budget", "latency=0.8x", "--formats",
    "w8a8,fp32", "--effort", "fast",
    "--evaluations", "20", "--samples", "64", "--rounding", "nearest",
]  # fmt: skip
SMALL_JOB = [
    "run", "--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16", "--budget", "latency=0.8x",
    "--formats", "w8a8,fp32",
    "--effort", "fast",
]  # fmt: skip
MOST_SECONDS = 300


@pytest.fixture(params=SERVERS)
def server(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("sshd")) as running:
        before = set(left_on(running))
        yield running
        for directory in set(left_on(running)) - before:
            for pid in runners(directory):
                os.kill(pid, signal.SIGKILL)


def left_on(server: Server) -> list[Path]:
    return list((server.home / ".cache" / "smpq").glob("*"))


def started(warm, server: Server, run: Path, job: list[str], errors, ignored=()) -> Process:
    environment = {"SMPQ_SSH_OPTIONS": server.options, "OMP_NUM_THREADS": "1"}
    command = ["cli", *job, "--out", run, "--device", server.address]
    return warm.run(*command, environment=environment, stderr=errors, ignored=ignored)


def measured(log: str) -> list[str]:
    return [line.split()[3] for line in log.splitlines() if line.split()[2] == "measured"]


@pytest.mark.slow
def test_the_whole_job_goes_on_after_three_cuts_and_measures_nothing_twice(warm, server, tmp_path):
    run = tmp_path / "run"
    before = set(left_on(server))
    log, cuts = None, []
    with (tmp_path / "errors").open("w+") as errors:
        with started(warm, server, run, JOB, errors) as process:
            while process.poll() is None:
                time.sleep(0.02)
                ours = [directory for directory in left_on(server) if directory not in before]
                if log is None:
                    log = next(
                        (directory / "runner.log" for directory in ours if (directory / "runner.log").is_file()), None
                    )
                    log = log and log.open()  # what is written to it can be read even when it has been removed
                    continue
                log.seek(0)
                # each time while a runner is at work, a few engines later
                if len(cuts) < CUTS and len(measured(log.read())) >= 2 * len(cuts):
                    cuts += cut_while_at_work(server, ours)
            output = process.stdout.read()
        errors.seek(0)
        told = errors.read()
    assert process.returncode in (0, 1), told
    assert "report.html" in output
    assert len(cuts) == CUTS
    assert sum("trying again" in line for line in told.splitlines()) >= CUTS
    log.seek(0)
    (file,) = (run / "device").glob("*/measurements.json")
    results = json.loads(file.read_text())["results"]
    assert len(measured(log.read())) == len({result["key"] for result in results}) == len(results), "each once"
    log.close()
    latency = json.loads((run / "latency.json").read_text())
    assert latency["machine"] == machine()
    (search,) = json.loads((run / "loop.json").read_text())["searches"]
    steps = search["steps"]
    assert len(steps) >= 3
    assert all(step["measured"] is not None for step in steps)
    assert set(left_on(server)) == before, "nothing is left on the device"


def cut_while_at_work(server: Server, directories: list[Path]) -> list[int]:
    """Cut the connections while a runner is at work: it is stopped meanwhile, so that it does not end before they are
    cut.
    """
    pids = [pid for directory in directories for pid in runners(directory)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    number = server.cut_connections() if pids else 0
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return [number] if number else []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ignored"), [("SIGTERM", ("SIGINT",)), ("SIGHUP", ()), ("SIGINT", ())])
def test_a_command_that_is_stopped_leaves_nothing_on_the_device(warm, server, tmp_path, name, ignored):
    before = set(left_on(server))
    with (tmp_path / "errors").open("w+") as errors:
        with started(warm, server, tmp_path / "run", SMALL_JOB, errors, ignored) as process:
            deadline = time.monotonic() + MOST_SECONDS
            while not (at_work := [pid for directory in set(left_on(server)) - before for pid in runners(directory)]):
                assert process.poll() is None, (tmp_path / "errors").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(getattr(signal, name))
            if name == "SIGINT":  # the first one ends the search, the second one the process
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=MOST_SECONDS)
        errors.seek(0)
        told = errors.read()
    assert process.returncode == 128 + getattr(signal, name), told
    assert "what the run had finished is kept" in told
    assert "Traceback" not in told
    assert set(left_on(server)) == before, "nothing is left on the device"
    time.sleep(0.2)
    assert not [
        pid
        for pid in at_work
        if Path(f"/proc/{pid}/stat").is_file() and "(python" in Path(f"/proc/{pid}/stat").read_text()
    ]
