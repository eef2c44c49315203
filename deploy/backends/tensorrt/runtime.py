"""The two TensorRT modules, and what to install for them."""

from __future__ import annotations

from types import ModuleType

from calib.errors import UserError
from deploy.runner.errors import DeviceError, MissingModule
from deploy.runner.trt_log import load_module

RUNTIMES = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Name of each runtime, as in the target's name, and the extra of this package that installs it."""


def load(name: str) -> ModuleType:
    """Return the Python module of the runtime `tensorrt-rtx` or `tensorrt`.

    Raises UserError with the command that installs it when it is missing or does not load.
    """
    try:
        return load_module(name)
    except MissingModule as error:
        raise UserError(f"{error}; or with this package: pip install 'smpq[{RUNTIMES[name]}]'") from error
    except DeviceError as error:
        raise UserError(str(error)) from error
