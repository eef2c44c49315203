"""Import one of the two TensorRT modules, and collect what it has to say."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from calib.errors import UserError

RUNTIMES = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Name of each runtime, as in the target's name, and the extra of this package that installs it."""


class Message(NamedTuple):
    """One line of the runtime's log; the severity is one of VERBOSE, INFO, WARNING, ERROR and INTERNAL_ERROR."""

    severity: str
    text: str


# The libraries keep the first logger that a process hands them and ignore all later ones, even across the two modules. So the process
# has one list, whatever logger writes to it, and one build at a time.
_messages: list[Message] = []
_one_build = threading.Lock()


def load(name: str) -> ModuleType:
    """Return the Python module of the runtime `tensorrt-rtx` or `tensorrt`.

    Raises UserError with the command that installs it when it is missing or does not load.
    """
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}: write one of {', '.join(RUNTIMES)}")
    install = f"pip install 'smpq[{RUNTIMES[name]}]'"
    try:
        return importlib.import_module(name.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UserError(f"{name} is not installed: {install}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"{name} is installed but does not load ({error}): {install}") from error


@contextmanager
def logged(module: ModuleType) -> Iterator[tuple[Any, list[Message]]]:
    """Give the process's logger and the list of messages of this build, to be read while the context is open."""
    with _one_build:
        try:
            yield _logger(module), _messages
        finally:
            _messages.clear()


@cache
def _logger(module: ModuleType) -> Any:
    class Collector(module.ILogger):  # type: ignore[misc, name-defined]  # the base class is only known once the module is loaded
        def __init__(self) -> None:
            # The bindings refuse an object whose C++ half was built through super().
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            _messages.append(Message(str(severity).rsplit(".", 1)[-1], msg))

    return Collector()
