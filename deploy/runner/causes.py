"""Why an engine was not timed: the runtime refuses the model, the device failed for the moment, or this program has a
bug.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import NamedTuple

from deploy.runner.errors import BuildError, CudaError

REFUSED = "refused"
"""The runtime makes no engine of this model, or none that runs: another attempt would end in the same way."""
TRANSIENT = "transient"
"""Memory ran out, the device was lost, or a call took too long: another attempt may succeed."""
INTERNAL = "internal"
"""An exception of our own code: it says nothing about the model."""

_TRANSIENT_TEXT = re.compile(
    r"out of (?:\w+ )?memory|OutOfMemory|OUT_OF_MEMORY|bad_alloc|bad allocation|cannot allocate memory"
    r"|failed to allocate memory|memory\b.* could not be allocated|cudaErrorMemoryAllocation|DevicesUnavailable"
    r"|DEVICE_UNAVAILABLE|ECC_?UNCORRECTABLE|Launch_?Timeout|device (?:is |was )?lost|fallen off the bus|timed out",
    re.IGNORECASE,
)
_RUNTIME_PACKAGES = {"onnxruntime", "tensorrt", "tensorrt_bindings", "tensorrt_rtx", "pycuda"}
_LONGEST_REASON = 2000
_MOST_NODES = 200


class Failure(NamedTuple):
    """Why an engine has no figures: the reason in one line, one of the three causes, and the ONNX nodes that the
    runtime blames.
    """

    reason: str
    cause: str
    nodes: tuple[str, ...]


def failure_of(error: Exception) -> Failure:
    """Tell the cause of an exception.

    1. Phrases such as "out of memory" are transient, whatever the exception.
    2. BuildError, what the runtimes' own packages raise, and a plain RuntimeError, to which their bindings turn any
       C++ exception, are refusals.
    3. Everything else is a bug: TypeError, say, or NotComparable, since engines of one experiment are timed in one way.
    """
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = lines[0] if isinstance(error, BuildError) else f"{type(error).__name__}: {lines[0]}"
    nodes = error.nodes[:_MOST_NODES] if isinstance(error, BuildError) else ()
    if isinstance(error, MemoryError) or _TRANSIENT_TEXT.search(f"{type(error).__name__}: {error}"):
        return Failure(_cut(reason), TRANSIENT, nodes)
    if isinstance(error, BuildError):
        return Failure(_cut(reason), REFUSED, nodes)
    if isinstance(error, CudaError) or type(error) is RuntimeError or _is_of_a_runtime(error):
        return Failure(_cut(f"the runtime failed: {reason}"), REFUSED, nodes)
    return Failure(_cut(f"{reason}{_place(error)}"), INTERNAL, nodes)


def _is_of_a_runtime(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _RUNTIME_PACKAGES


def _place(error: Exception) -> str:
    """Say where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."
