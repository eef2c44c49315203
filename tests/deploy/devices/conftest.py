"""A server on loopback, and a run that measures there."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from deploy.devices.places import run_name
from deploy.devices.ssh import SshDevice
from tests.deploy.devices.servers import SERVERS, Server, serving


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def there(server, tmp_path):
    """A fingerprint of the test's own, and the directory on the device that belongs to it and to the run in `here`."""
    fingerprint = uuid.uuid4().hex * 2
    (tmp_path / "here").mkdir()
    directory = place_there(server, tmp_path / "here", fingerprint)
    yield fingerprint, directory
    if directory.is_file():
        directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)


def place_there(server: Server, here: Path, fingerprint: str) -> Path:
    return server.home / ".cache" / "smpq" / f"{fingerprint[:16]}-{run_name(here)}"


@pytest.fixture
def connect(server: Server, tmp_path, monkeypatch):
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    return lambda name="here": SshDevice(server.address, tmp_path / name, delays_s=(0.2,) * 5)
