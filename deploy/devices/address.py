"""The device that an address names."""

from __future__ import annotations

from pathlib import Path

from calib.errors import UserError
from deploy.devices.base import Device
from deploy.devices.local import LocalDevice
from deploy.devices.ssh import SshDevice


def is_here(text: str) -> bool:
    """Whether an address names this machine."""
    return text in ("", "local")


def check_address(text: str) -> None:
    """Raise UserError for an address that names neither this machine nor one that is reached over ssh."""
    if not is_here(text) and not text.startswith("ssh://"):
        raise UserError(
            f"unknown device {text}: write local, or ssh://user@host, with the port behind it if it is not 22"
        )


def device_from_address(text: str, directory: Path) -> Device:
    """Return the device that an address names: "" or "local" is this machine, "ssh://user@host[:port]" another one.

    `directory` keeps here what has been measured. Raises UserError for any other address.
    """
    check_address(text)
    return LocalDevice(directory) if is_here(text) else SshDevice(text, directory)
