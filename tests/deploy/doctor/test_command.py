"""`smpq doctor` on this machine, and over ssh to an environment without packages."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import refused, smpq
from tests.deploy.devices.servers import serving
from tests.deploy.doctor.machines import bare


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving("asyncssh", tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def address(server, monkeypatch):
    """Return the address of a Python on the server's machine."""
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    return lambda python: f"{server.address.partition('?')[0]}?python={python}"


def test_this_machine():
    result = smpq("doctor", "--json", "--quiet")
    record = json.loads(result.out)
    assert (result.code, result.err, record["met"]) == (0, "", True)
    assert record["facts"]["python"]["executable"] == sys.executable
    assert next(row for row in record["works"] if row["family"] == "ort-cpu") == {
        "family": "ort-cpu", "search": None, "build": None, "measure": None,
    }  # fmt: skip
    assert record["facts"]["probes"]["torch"]["version"] is not None


def test_over_ssh_to_a_python_without_packages(address, server, tmp_path):
    python = bare(tmp_path).wrapper(tmp_path / "python")
    before = sorted(server.home.rglob("*"))
    result = smpq("doctor", "--device", address(python), "--target", "ort-cpu")
    assert result.code == 2
    assert (
        f"\nto mend on the device:\n  {python} -m ensurepip\n  {python} -m pip install numpy\n  {python} -m pip "
        "install onnxruntime\n" in result.out
    )
    assert "  ort-cpu       yes     no     no       numpy is missing" in result.out
    assert "numpy         problem" in result.out
    assert sorted(server.home.rglob("*")) == before, "nothing is left there"


def test_a_device_that_cannot_be_asked(address, tmp_path, monkeypatch):
    assert "there is no /no/python: sudo apt install python3" in refused("doctor", "--device", address("/no/python"))
    talks = tmp_path / "talks"
    for words, message in (
        ("echo welcome", "a login there must not print anything"),
        ("kill -9 $$", "died with signal 9"),
        ("exit 3", "exit code 3"),
    ):
        talks.write_text(f"#!/bin/sh\n{words}\n")
        talks.chmod(0o755)
        assert message in refused("doctor", "--device", address(talks))
    assert "unknown device orin: write local, or ssh://" in refused("doctor", "--device", "orin")
    assert "unknown target 'gpu'" in refused("doctor", "--target", "gpu")
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", "-i 'key")
    assert "SMPQ_SSH_OPTIONS cannot be read" in refused("doctor", "--device", "ssh://me@orin")
