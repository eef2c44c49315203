"""The text that names a device."""

from __future__ import annotations

import pytest

from calib.errors import UserError
from deploy.devices.address import device_from_address
from deploy.devices.connection import Address
from deploy.devices.local import LocalDevice
from deploy.devices.ssh import SshDevice


def test_devices(tmp_path):
    assert isinstance(device_from_address("", tmp_path), LocalDevice)
    assert isinstance(device_from_address("local", tmp_path), LocalDevice)
    assert isinstance(device_from_address("ssh://me@orin.local", tmp_path), SshDevice)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ssh://orin", ("orin", None, None, "python3")),
        ("ssh://me@orin.local:2222", ("orin.local", "me", 2222, "python3")),
        ("ssh://me@[fe80::1]/?python=/opt/a%20b/python", ("fe80::1", "me", None, "/opt/a b/python")),
        ("ssh://Orin-AGX:22", ("Orin-AGX", None, 22, "python3")),
        ("ssh://first%2Elast%40corp@Orin?python=", ("Orin", "first.last@corp", None, "python3")),
        ("ssh://me@orin?python=/opt/c++/python%2B", ("orin", "me", None, "/opt/c++/python+")),
    ],
)
def test_addresses(text, parts):
    address = Address.from_text(text)
    assert (address.host, address.user, address.port, address.python) == parts


@pytest.mark.parametrize(
    ("python", "word"),
    [
        ("python3", "python3"),
        ("/opt/a%20b/python", "'/opt/a b/python'"),
        ("~/venv/bin/python", '"$HOME"/venv/bin/python'),
        ("my%20venv/bin/python", "\"$HOME\"/'my venv/bin/python'"),
    ],
)
def test_a_python_below_the_home_directory_is_found_from_everywhere(python, word):
    assert Address.from_text(f"ssh://orin?python={python}").python_word == word


@pytest.mark.parametrize(
    "text",
    [
        "orin", "http://orin", "ssh:/orin", "ssh://", "ssh://me:secret@orin", "ssh://orin:port", "ssh://orin/home/me",
        "ssh://orin?shell=fish", "ssh://-oProxyCommand=touch@orin", "ssh://-oProxyCommand=touch",
        "ssh://%2DoProxyCommand=touch@orin", "ssh://me%0AProxyCommand=touch@orin", "ssh://orin?python=/opt/a#b",
    ],
)  # fmt: skip
def test_what_is_no_address(text, tmp_path):
    with pytest.raises(UserError, match=r"write (local, or )?ssh://user@host"):
        device_from_address(text, tmp_path)


def test_options_for_ssh_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", "-i 'key")
    with pytest.raises(UserError, match=r"SMPQ_SSH_OPTIONS cannot be read .*: correct it, or unset it"):
        device_from_address("ssh://me@orin", tmp_path)
