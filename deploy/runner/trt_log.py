"""Import one of the two TensorRT modules, and collect what it has to say."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from deploy.runner.errors import BuildError, DeviceError, MissingModule


class TrtRuntime(NamedTuple):
    """How the two runtimes differ: the Python module, the C++ library, what to say beside `pip install`, whether the
    builder measures kernels, whether it builds for other GPUs than the one it runs on, and whether our plans are built
    to be given the memory that they work in.
    """

    module: str
    library: str
    elsewhere: str
    measures: bool
    builds_for_others: bool
    lends_memory: bool


TRT_RUNTIMES = {
    "tensorrt-rtx": TrtRuntime(
        "tensorrt_rtx", "tensorrt_rtx", "", measures=False, builds_for_others=True, lends_memory=True
    ),
    "tensorrt": TrtRuntime(
        "tensorrt",
        "nvinfer",
        " (on a Jetson: apt install python3-libnvinfer)",
        measures=True,
        builds_for_others=False,
        lends_memory=False,
    ),
}

# Printed with any error where there is no GPU. Building needs none, so it is the cause only where nothing else was
# printed.
_DRIVER_NOISE = re.compile(r"CUDA driver version is insufficient|Error Code 1: Cuda Runtime \(\s*\)")

_NOT_MADE = "factory function returned nullptr"
"""What the bindings raise where the library makes no builder or runtime."""


class Message(NamedTuple):
    """One line of the runtime's log; the severity is one of VERBOSE, INFO, WARNING, ERROR and INTERNAL_ERROR."""

    severity: str
    text: str


class TrtLog(NamedTuple):
    """The logger to hand to the runtime, and what it has written since the log was opened."""

    logger: Any
    messages: list[Message]

    def failed(self, errors: Iterable[str] = (), nodes: Iterable[str] = ()) -> BuildError:
        """Return the error for a model that does not build: `errors`, or without any the errors of the log, as one
        line.
        """
        texts = list(errors) or [message.text for message in self.messages if message.severity.endswith("ERROR")]
        # An error may be several lines, of which the line about the driver is one.
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if not _DRIVER_NOISE.search(line)] or lines
        important = [message for message in self.messages if message.severity not in ("VERBOSE", "INFO")]
        log = "\n".join(f"{message.severity}: {message.text}" for message in important)
        reason = " | ".join(dict.fromkeys(telling)) or "the runtime gave no reason"
        return BuildError(reason, log, tuple(dict.fromkeys(nodes)))


# The libraries keep the first logger that a process hands them and ignore all later ones, even across the two modules.
# So the process has one list, whatever logger writes to it, and one log open at a time.
_trt_messages: list[Message] = []
_one_log = threading.Lock()


def load_module(runtime: str) -> ModuleType:
    """Return the Python module of `tensorrt` or `tensorrt-rtx`.

    Raises MissingModule when it is missing or does not load, DeviceError for another name.
    """
    if runtime not in TRT_RUNTIMES:
        raise DeviceError(f"unknown runtime {runtime!r}: write one of {', '.join(TRT_RUNTIMES)}")
    known = TRT_RUNTIMES[runtime]
    try:
        return importlib.import_module(known.module)
    except ModuleNotFoundError as error:
        raise MissingModule(f"{runtime} is not installed: pip install {runtime}{known.elsewhere}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingModule(f"{runtime} is installed but does not load: {error}") from error


@contextmanager
def trt_logged(module: ModuleType) -> Iterator[TrtLog]:
    """Open the process's log, to be read while the context is open. Raises BuildError where the library makes no
    builder or runtime.
    """
    with _one_log:
        _trt_messages.clear()
        log = TrtLog(_trt_logger(module), _trt_messages)
        try:
            yield log
        except TypeError as error:
            if _NOT_MADE in str(error):  # the reason is in the log
                raise log.failed() from error
            raise
        finally:
            _trt_messages.clear()


@cache
def _trt_logger(module: ModuleType) -> Any:
    # the base class is only known once the module is loaded
    class Collector(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # The bindings refuse an object whose C++ half was built through super().
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            _trt_messages.append(Message(str(severity).rsplit(".", 1)[-1], msg))

    return Collector()
