"""Measuring over ssh, with a real server on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from calib.errors import UserError
from deploy.devices.places import note_used, run_name
from deploy.devices.runner_zip import RUNNER_FILE
from deploy.devices.ssh import SshDevice
from deploy.runner.protocol import Protocol
from deploy.runner.state import machine
from tests.deploy.devices.conftest import place_there
from tests.deploy.devices.remote_runners import measured_in, runners
from tests.deploy.experiments import broken_candidate, experiment

SLOWER = Protocol(rounds=15, round_ms=12.0, sets=1)
"""Nearly half a second for a candidate: what is done to the runner while it works comes in time."""


WAITING = "another runner is at work in this directory: waiting for it"


def test_another_machine_measures(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (1, 256), fingerprint=fingerprint)
    wanted = replace(wanted, candidates=(*wanted.candidates, broken_candidate(tmp_path)))
    device, lines = connect(), []
    fast, slow, broken = device.measure(wanted, lines.append)
    assert device.describe() == machine()
    assert fast.ratio < 1.0 < slow.ratio
    assert broken.ratio is None
    assert "Protobuf parsing failed" in broken.failed
    assert sum(line.startswith("measured") for line in lines) == 2
    assert measured_in(directory / "runner.log") == [fast.name, slow.name]
    device.close()
    assert not directory.exists()


def test_three_cut_connections(connect, server, there, tmp_path):
    """The runner is stopped while nobody hears it, so that it has not finished before the connection is there again."""
    fingerprint, directory = there
    slow = replace(SLOWER, round_ms=20.0)
    wanted = experiment(tmp_path / "models", (2, 4, 8, 12, 24), fingerprint=fingerprint, protocol=slow)
    device, lines, cuts, stopped = connect(), [], [], []

    def go_on():
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        stopped.clear()

    def announce(line):
        lines.append(line)
        if line == WAITING:
            go_on()
        elif line.startswith("measured") and sum(cuts) < 3:
            stopped.extend(runners(directory)[:1])
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            cuts.append(server.cut_connections() > 0)
            if not cuts[-1]:  # a line may come when its connection has just ended
                go_on()

    results = device.measure(wanted, announce)
    assert sum(cuts) == 3
    assert sum("trying again" in line for line in lines) >= 3
    assert any(line.startswith("measured") for line in lines[lines.index(WAITING) :]), (
        "what the first runner does is told"
    )
    assert [result.name for result in results] == [candidate.name for candidate in wanted.candidates]
    assert all(result.failed is None for result in results)
    assert measured_in(directory / "runner.log") == [candidate.name for candidate in wanted.candidates], "each once"
    device.close()
    assert not directory.exists()
    assert not runners(directory)


def test_the_end_of_one_run_is_not_that_of_another(connect, server, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (2, 4, 8, 12), fingerprint=fingerprint, protocol=SLOWER)
    first, second = connect(), connect("elsewhere")

    def interrupt(line):
        if line.startswith("measured"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.measure(wanted, interrupt)
    (runner,) = runners(directory)
    assert len(second.measure(replace(wanted, candidates=wanted.candidates[:1]))) == 1
    second.close()
    assert not place_there(server, tmp_path / "elsewhere", fingerprint).exists()
    assert directory.exists()
    assert runner in runners(directory) or len(measured_in(directory / "runner.log")) == 4
    assert len(first.measure(wanted)) == 4
    assert len(measured_in(directory / "runner.log")) == 4, "it went on"
    first.close()
    assert not directory.exists()


def test_a_copy_of_a_run_is_another_run(tmp_path):
    names = {run_name(tmp_path / "one"), run_name(tmp_path / "one")}
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert len(names | {run_name(tmp_path / "two")}) == 2


def test_what_a_killed_command_has_left_is_removed_by_the_next(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (4,), fingerprint=fingerprint)
    results = connect().measure(wanted)  # and never closed
    assert directory.exists()
    device = connect()
    assert device.measure(wanted) == results
    stopped = subprocess.Popen(("sh", "-c", "kill -STOP $$", RUNNER_FILE), cwd=directory)
    device.close()
    assert stopped.wait(5) == -signal.SIGKILL
    assert not directory.exists()


def test_a_directory_with_an_odd_name(connect, server, tmp_path, monkeypatch):
    """scp takes `host:file` for a file of another host, what begins with a dash for an option, and blanks apart."""
    monkeypatch.chdir(tmp_path)
    device, lines = SshDevice(server.address, Path("-oProxyCommand=touch 127.0.0.1:run"), delays_s=(1.0,)), []
    (result,) = device.measure(experiment(tmp_path / "models", (4,), fingerprint=uuid.uuid4().hex * 2), lines.append)
    assert result.failed is None
    assert not any("trying again" in line for line in lines), lines
    device.close()


def test_a_runner_that_is_killed_is_started_again(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (2, 4, 8), fingerprint=fingerprint, protocol=SLOWER)
    device, killed = connect(), []

    def announce(line):
        if line.startswith("measured") and not killed:
            killed.extend(runners(directory))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    results = device.measure(wanted, announce)
    assert len(killed) == 1
    assert all(result.failed is None for result in results)
    assert sorted(measured_in(directory / "runner.log")) == sorted(candidate.name for candidate in wanted.candidates)
    device.close()


def test_what_is_known_here_is_not_measured_again(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (4, 32), fingerprint=fingerprint)
    device = connect()
    first = device.measure(replace(wanted, candidates=wanted.candidates[:1]))
    device.close()
    assert device.known(wanted) == first
    assert not directory.exists(), "the device is not asked for it"
    both = device.measure(wanted)
    assert both[0] == first[0]
    assert measured_in(directory / "runner.log") == [both[1].name]
    device.close()
    assert connect().measure(wanted) == both
    assert not directory.exists(), "nothing was left to do there"


def test_results_of_another_version_of_the_runtime_are_measured_again(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (4, 32), fingerprint=fingerprint)
    device = connect()
    device.measure(replace(wanted, candidates=wanted.candidates[:1]))
    device.close()
    (file,) = (tmp_path / "here").glob("*/measurements.json")
    file.write_text(file.read_text().replace('"onnxruntime": "', '"onnxruntime": "0.'))
    device = connect()
    assert len(device.measure(wanted)) == 2
    assert sorted(measured_in(directory / "runner.log")) == sorted(c.name for c in wanted.candidates)
    assert '"onnxruntime": "0.' not in file.read_text()
    device.close()


def test_half_a_file_is_never_used(connect, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (4,), fingerprint=fingerprint)
    name = f"{wanted.candidates[0].name}.onnx"
    (directory / "incoming").mkdir(parents=True)
    for place in (directory / name, directory / "incoming" / name):
        place.write_bytes(wanted.candidates[0].model.read_bytes()[:1000])
    device = connect()
    (result,) = device.measure(wanted)
    assert result.failed is None
    assert (directory / name).read_bytes() == wanted.candidates[0].model.read_bytes()
    device.close()


def test_close_stops_a_runner(connect, server, there, tmp_path):
    fingerprint, directory = there
    wanted = experiment(tmp_path / "models", (2, 4, 8, 12), fingerprint=fingerprint, protocol=SLOWER)
    device = connect()

    def interrupt(line):
        if line.startswith("measured"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.measure(wanted, interrupt)
    assert runners(directory)
    device.close()
    assert not directory.exists()
    time.sleep(0.2)
    assert not runners(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"-i ": "-o IdentityAgent=none -i /nothing"}, "login is refused"),
        ({"known_hosts": "nobody_known"}, "key of the host is not known"),
        ({"-F none": "-o NoSuchOption=1"}, "SMPQ_SSH_OPTIONS"),
    ],
)
def test_a_connection_that_somebody_has_to_change(connect, server, tmp_path, monkeypatch, change, message):
    options = server.options
    for old, new in change.items():
        options = options.replace(old, new)
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", options)
    device = SshDevice(server.address, tmp_path, delays_s=(100.0,))
    with pytest.raises(UserError, match=message):
        device.describe()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python3", "there is no /nowhere/python3"),
        ("{directory}/bare", "no module numpy"),
        ("{directory}/old", "is Python 3.8, and 3.10 or later is needed"),
    ],
)
def test_a_python_that_does_not_do(connect, server, tmp_path, python, message):
    (tmp_path / "bare").write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'numpy'\" >&2\nexit 1\n")
    (tmp_path / "old").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = 3, 8, 1; exec(sys.stdin.read())'\n"
    )
    for name in ("bare", "old"):
        (tmp_path / name).chmod(0o755)
    address = f"{server.address.partition('?')[0]}?python={python.format(directory=tmp_path)}"
    with pytest.raises(UserError, match=message):
        SshDevice(address, tmp_path, delays_s=(100.0,)).describe()


def test_a_device_that_cannot_be_reached(connect, server, tmp_path, monkeypatch):
    device, waited = SshDevice("ssh://somebody@127.0.0.1:1", tmp_path, delays_s=(0.1, 0.2)), []
    monkeypatch.setattr(time, "sleep", waited.append)
    note_used(tmp_path, "ssh://somebody@127.0.0.1:1", ".cache/smpq/run")
    for _ in range(2):
        with pytest.raises(UserError, match="what is measured is kept"):
            device.describe()
    with pytest.raises(UserError, match="connection lost"):
        device.close()
    assert waited == [0.1, 0.2], "who has given up tries once more, and does not wait"


def test_results_start_the_count_of_lost_connections_again(server, there, tmp_path, monkeypatch):
    fingerprint, _ = there
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    wanted = experiment(tmp_path / "models", (2, 4, 8, 12), fingerprint=fingerprint, protocol=SLOWER)
    device, cuts = SshDevice(server.address, tmp_path / "here", delays_s=(0.1,)), []

    def announce(line):
        if line.startswith("measured") and len(cuts) < 2:
            cuts.append(server.cut_connections())

    assert len(device.measure(wanted, announce)) == 4
    assert len(cuts) == 2, "twice as often as the delays allow in a row"
    device.close()


def test_a_directory_that_cannot_be_made(connect, there, tmp_path):
    fingerprint, directory = there
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("a file where the directory should be")
    with pytest.raises(UserError, match="cannot create directory"):
        connect().measure(experiment(tmp_path / "models", (4,), fingerprint=fingerprint))


def test_a_float_engine_that_does_not_build(connect, there, tmp_path):
    fingerprint, _ = there
    wanted = replace(experiment(tmp_path / "models", (4,), fingerprint=fingerprint), float_=broken_candidate(tmp_path))
    device = connect()
    with pytest.raises(UserError, match="float engine does not build"):
        device.measure(wanted)
    device.close()
