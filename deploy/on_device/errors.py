"""What goes wrong on a device: a model that does not build, and a device that somebody has to change."""

from __future__ import annotations


class BuildFailed(Exception):  # noqa: N818 - it is a result that the measuring goes on from, not an error of the program
    """A model of which the runtime makes no engine here: `reason` in one line, and what the runtime wrote about it as `log`."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


class DeviceError(Exception):
    """Nothing can be measured until somebody changes something; the message says what, in one line. The runner exits with 2."""


class MissingModule(DeviceError):
    """A Python module is missing, or the driver that it needs; the message says what to install."""
