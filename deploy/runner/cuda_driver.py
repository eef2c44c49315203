"""CUDA through the driver's own library, by ctypes: device memory, copies, one stream, events and graphs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_float, c_int, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

from deploy.runner.cuda_library import (
    DEVICE_ADDRESS,
    checked,
    device_uuid,
    driver_text,
    first_device,
    start_driver,
)
from deploy.runner.errors import BuildError, CudaError, MissingModule

if TYPE_CHECKING:  # the program that looks at a machine holds this module too, and numpy may be missing there
    import numpy.typing as npt

_THREAD_LOCAL, _NON_BLOCKING = 1, 1
_SM_COUNT, _L2_BYTES, _MAJOR, _MINOR = 16, 38, 75, 76
_NAME_BYTES = 256
_RUNTIME_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


class DriverCuda:
    """The adapter for the driver's library, in the primary context of the first GPU, which TensorRT uses too.

    The primary context is not given back: TensorRT may still hold objects in it, and it goes with the process.
    """

    library = "CUDA driver"

    def __init__(self, library: ctypes.CDLL) -> None:
        """`library` is what `load_driver` returns. Raises MissingModule when the driver does not start or has no
        GPU.
        """
        self._library = library
        self._graphs: list[c_void_p] = []
        self.driver_version = start_driver(library)
        try:
            self.first_device = first_device(library)
            context = self._made("cuDevicePrimaryCtxRetain", c_void_p(), self.first_device)
            self._call("cuCtxSetCurrent", context)
            # A stream that does not wait for the default one: work on the default stream would end a capture.
            self._stream = self._made("cuStreamCreate", c_void_p(), _NON_BLOCKING)
            self._events = [self._made("cuEventCreate", c_void_p(), 0) for _ in range(2)]
        except CudaError as error:
            raise MissingModule(
                f"running an engine needs an NVIDIA GPU, and {driver_text(library)} gives none: {error}. Look at "
                "nvidia-smi for "
                "what occupies it, or restart the machine"
            ) from error
        self.stream = int(self._stream.value or 0)
        self.uuid: str | None = device_uuid(library, self.first_device)
        self.l2_bytes, self.sm_count = (self._attribute(kind) for kind in (_L2_BYTES, _SM_COUNT))

    def device_name(self) -> str:
        """See `Cuda`."""
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self.first_device)
        return name.value.decode(errors="replace")

    def compute_capability(self) -> tuple[int, int]:
        """See `Cuda`."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    def memory_bytes(self) -> tuple[int, int]:
        """See `Cuda`."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size_bytes: int) -> int:
        """See `Cuda`."""
        return int(self._made("cuMemAlloc_v2", DEVICE_ADDRESS(), size_bytes).value)

    def free(self, address: int) -> None:
        """See `Cuda`."""
        self._library.cuMemFree_v2(address)

    def fill(self, address: int, size_bytes: int) -> None:
        """See `Cuda`."""
        self._call("cuMemsetD8Async", address, 0, size_bytes, self._stream)

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """See `Cuda`."""
        self._call("cuStreamSynchronize", self._stream)

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """See `Cuda`."""
        start, end = self._events
        self._call("cuEventRecord", start, self._stream)
        work()
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        return float(self._made("cuEventElapsedTime", c_float(), start, end).value)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """See `Cuda`. The work has to have run once, so that what is made at the first run is not captured.

        A capture that fails is ended, what was captured is destroyed, and the last error of the CUDA runtime is
        cleared, in this order, as in trtexec (NVIDIA/TensorRT, samples/common/sampleDevice.h). Raises CudaError when
        the stream does not work after that.
        """
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        refused = True
        try:
            with suppress(
                BuildError, RuntimeError
            ):  # of TensorRT, of its binding, or of this adapter: not to be captured
                work()
                refused = False
        finally:
            executable = self._end_capture(refused)
        if executable is None:
            self.synchronize()
            return None
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """See `Cuda`."""
        for graph in self._graphs:
            self._library.cuGraphExecDestroy(graph)
        for event in self._events:
            self._library.cuEventDestroy_v2(event)
        self._graphs, self._events = [], []
        if self._stream:
            self._library.cuStreamDestroy_v2(self._stream)
        self._stream = c_void_p()

    def _end_capture(self, refused: bool) -> c_void_p | None:
        """End the capture; returns the graph to launch, or None when nothing was captured, with nothing left of it."""
        graph, executable = c_void_p(), c_void_p()
        code = self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code == 0 and not refused:
            code = self._library.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        if graph:
            self._library.cuGraphDestroy(graph)
        if code == 0 and not refused:
            return executable
        _clear_runtime_error()
        return None

    def _attribute(self, kind: int) -> int:
        return int(self._made("cuDeviceGetAttribute", c_int(), kind, self.first_device).value)

    def _call(self, name: str, *arguments: Any) -> None:
        checked(self._library, name, *arguments)

    def _made(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call a function that writes its result to its first argument; returns that."""
        self._call(name, ctypes.byref(result), *arguments)
        return result


def _clear_runtime_error() -> None:
    """Clear the last error of the CUDA runtime that TensorRT has loaded, which its next call would take for its own.

    The driver's library has no last error. A runtime that is linked into TensorRT is not reached, as by trtexec.
    """
    if sys.platform == "win32":
        return
    import os

    for name in _RUNTIME_LIBRARIES:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).cudaGetLastError()
