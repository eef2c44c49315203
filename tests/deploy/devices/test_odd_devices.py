"""Devices that send too much, that send the wrong thing, or that never come to an end."""

from __future__ import annotations

import json
import re
import sys
import time
import uuid

import pytest

from calib.errors import UserError
from deploy.devices import connection, process
from deploy.devices.connection import Address, Connection
from deploy.devices.messages import LARGEST_MESSAGE_BYTES
from deploy.devices.ssh import SshDevice
from tests.deploy.devices.servers import serving
from tests.deploy.experiments import experiment

PYTHON = """#!/bin/sh
# A Python that answers as one, and then does something else than the runner.
[ "$1" = - ] && exec {python} -
{does}
"""
MOST_SECONDS = 300
MOST_BYTES = 2_000_000
"""Of output, of errors, and of a file: a small share of what may come, so that it comes soon."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving("asyncssh", tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def measure(server, tmp_path, monkeypatch):
    """Measure on a device whose runner is a shell script; returns the message of what is wrong with it, and the lines
    that were told.
    """
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    assert max(connection._MOST_OUTPUT_BYTES, process._MOST_ERRORS_BYTES, LARGEST_MESSAGE_BYTES) < 100_000_000
    assert Connection.fetch.__defaults__ == (LARGEST_MESSAGE_BYTES,)
    monkeypatch.setattr(connection, "_MOST_OUTPUT_BYTES", MOST_BYTES)
    monkeypatch.setattr(process, "_MOST_ERRORS_BYTES", MOST_BYTES)
    monkeypatch.setattr(Connection.fetch, "__defaults__", (MOST_BYTES,))

    def measured(does: str, fingerprint: str = "") -> tuple[str, list[str]]:
        python, lines = tmp_path / "python", []
        python.write_text(PYTHON.format(python=sys.executable, does=does))
        python.chmod(0o755)
        wanted = experiment(tmp_path / "models", (4,), fingerprint=fingerprint or uuid.uuid4().hex * 2)
        device = SshDevice(
            f"{server.address.partition('?')[0]}?python={python}", tmp_path / "here", delays_s=(0.01, 0.01)
        )
        start = time.monotonic()
        with pytest.raises(UserError) as refused:
            device.measure(wanted, lines.append)
        assert time.monotonic() - start < MOST_SECONDS
        device.close()
        return str(refused.value), lines

    return measured


@pytest.mark.parametrize("does", ["yes measured 0123456789abcdef: fast", "tr '\\0' x < /dev/zero", "cat /dev/zero"])
def test_lines_without_an_end(measure, does):
    message, lines = measure(does)
    assert "more than 2 MB came from it" in message
    assert max(map(len, lines)) <= 503


def test_errors_without_an_end(measure):
    message, _ = measure("yes >&2")
    assert "more than 2 MB came from it" in message


def test_results_that_are_always_the_same_do_not_go_on_for_ever(measure, tmp_path):
    message, lines = measure(
        'grep -o \'"name": "[0-9a-f]*"\' experiment.json | cut -d\'"\' -f4 | sed "s/^/measured /; s/$/: 1x/"; exit 255'
    )
    assert "what is measured is kept" in message
    assert sum("trying again" in line for line in lines) <= 2 * 2, "two candidates at most, twice each"


def test_characters_that_change_the_terminal(measure):
    message, lines = measure(
        "printf 'measured \\033[2J\\007\\342\\200\\256 x\\n'; printf 'broken \\033]0;title\\007\\n' >&2; exit 3"
    )
    assert "measured ?[2J?? x" in lines
    assert message.endswith("broken ?]0;title?")


def test_a_full_disk_there_is_told_at_once(monkeypatch):
    said = 'scp: write remote ".cache/smpq/run/incoming/model.onnx": Failure\n'
    monkeypatch.setattr(connection, "run_program", lambda *_: (1, said))
    with pytest.raises(UserError, match=r"see with df -h ~/.cache whether its disk is full \(scp: write remote"):
        Connection(Address.from_text("ssh://me@orin")).send([], ".cache/smpq/run/incoming/")


def test_a_file_that_is_too_large(measure):
    message, _ = measure("truncate -s 1G measurements.json")
    assert "more than 2 MB came from it" in message


def test_no_file_at_all(measure):
    message, _ = measure("true")
    assert "measurements.json" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("found['results'][0]['ratio'] = -1", r"\$.results\[0\].ratio"),
        (
            "found['results'][0]['ratio'] = found['results'][0]['ratio'] / 2",
            "is the median of the ratios of its rounds",
        ),
        ("found['results'] = []", "it sent no result for some candidates"),
        ("found['results'] *= 2", "it comes twice"),
        ("found['machine'] = 'another'", "it called itself .*, and now another"),
        ("found = []", "expected `object`, got `array`"),
        ("found['fingerprint'] = 'f' * 64", "measured with other models or data"),
    ],
)
def test_results_that_contradict_themselves(measure, server, change, message):
    program = (
        f"import json; found = json.load(open('measurements.json')); {change}; "
        "json.dump(found, open('measurements.json', 'w'))"
    )
    real = server.home / "real.json"  # what the runner has measured, once for all of these tests
    if not real.exists():
        program = f"import shutil; shutil.copy('measurements.json', '{real}'); {program}"
    results = f"cp {real} measurements.json" if real.exists() else f"{sys.executable} runner.pyz"
    told, _ = measure(f'{results} && {sys.executable} -c "{program}"', "5a" * 32)
    assert re.search(message, told), told


def test_an_answer_that_is_no_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    python = tmp_path / "python"
    for answer in (
        "welcome",
        json.dumps({"machine": "a\x1b[2Jboard"}),
        json.dumps({"machine": ""}),
        "[" * 5000,
    ):
        python.write_text(f"#!/bin/sh\necho '{answer}'\n")
        python.chmod(0o755)
        device = SshDevice(f"{server.address.partition('?')[0]}?python={python}", tmp_path / "here")
        with pytest.raises(UserError, match="a login there must not print anything") as refused:
            device.describe()
        assert str(refused.value).isprintable()
