"""What goes wrong on a device: a model that does not build, and a device that somebody has to change."""

from __future__ import annotations


class BuildError(Exception):
    """A model of which the runtime makes no engine here, or none that runs.

    `reason` in one line, what the runtime wrote about it as `log`, and the names of the ONNX nodes that it blames, if
    it says which.
    """

    def __init__(self, reason: str, log: str = "", nodes: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log
        self.nodes = nodes


class CudaError(RuntimeError):
    """A call of CUDA failed; the message is CUDA's name for the reason, and its words."""


class DeviceError(Exception):
    """Nothing can be measured until somebody changes something; the message says what, in one line. The runner exits
    with 2.
    """


class MissingModule(DeviceError):  # noqa: N818 - the name says what is wrong
    """A Python module is missing, or the driver that it needs; the message says what to install."""
