"""What running an engine needs of CUDA, and which of two adapters gives it: the driver's own library, or pycuda."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from deploy.runner.cuda_driver import DriverCuda
from deploy.runner.cuda_library import load_driver
from deploy.runner.cuda_pycuda import PyCuda
from deploy.runner.errors import MissingModule


class Cuda(typing.Protocol):
    """One GPU and one stream of its own; all copies and events are on that stream.

    1. `library` names what is behind it, `stream` is the address of the CUDA stream.
    2. `driver_version` is the CUDA version that the driver knows, as in (12, 6). `uuid` is None where it is not told.
    3. `l2_bytes` is the size of the L2 cache, `sm_count` the number of streaming multiprocessors.
    4. Memory is addressed by number. It is the caller's to free, which never fails: what CUDA no longer takes back goes
       with the process.
    5. A copy is asynchronous: the array has to stay alive, and is only filled, once `synchronize` has returned.
    6. `capture` returns how to launch what `work` puts on the stream as one CUDA graph, or None where that cannot be
       captured. The stream works after both.

    Calls raise CudaError when CUDA does.
    """

    library: str
    stream: int
    driver_version: tuple[int, int]
    uuid: str | None
    l2_bytes: int
    sm_count: int

    def device_name(self) -> str:
        """Name of the GPU, as its driver has it."""

    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, as in (8, 7)."""

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the device."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""

    def free(self, address: int) -> None:
        """Give device memory back."""

    def fill(self, address: int, size_bytes: int) -> None:
        """Write zeros to device memory."""

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array."""

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array."""

    def synchronize(self) -> None:
        """Wait until the stream is done."""

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Milliseconds between an event before `work` and one behind it; waits for both."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Return the launch of a graph of `work`, or None."""

    def close(self) -> None:
        """Give back the stream, the events and the graphs."""


def open_cuda() -> Cuda:
    """Return an adapter for the first GPU.

    1. The driver's library is used where it loads. It needs no package, and has CUDA graphs.
    2. pycuda is used where that library is not found under its usual name and pycuda can be imported. It has no graphs.

    Raises MissingModule when there is neither, or no GPU that works; the message says what is there and what to do.
    """
    try:
        library = load_driver()
    except OSError as error:
        try:
            return PyCuda(importlib.import_module("pycuda.driver"))
        except ImportError:
            raise MissingModule(
                f"running an engine needs an NVIDIA GPU with its driver, and the driver's library does not load "
                f"({error}): install "
                "the driver; in a container, start it with --gpus all, or --runtime nvidia on a Jetson"
            ) from error
    return DriverCuda(library)
