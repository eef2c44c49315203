"""CUDA through pycuda or cuda-python: device memory, copies, one stream, events and graphs."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy.typing as npt

from deploy.on_device.errors import MissingModule

Work = Callable[[], None]
"""Puts work on the adapter's stream and returns without waiting for it."""


class CudaError(RuntimeError):
    """A call of CUDA failed; the message is CUDA's name for the reason."""


class Cuda(typing.Protocol):
    """What is needed of CUDA. Each adapter has one stream of its own; all copies and events are on it.

    1. `library` names the Python module behind it, `stream` is the address of the CUDA stream.
    2. Memory is addressed by number. It is the caller's to free, which never fails: what CUDA no longer takes back goes with the process.
    3. A copy is asynchronous: the array has to stay alive, and is only filled, once `synchronize` has returned.
    4. `capture` returns how to launch what `work` puts on the stream as one CUDA graph, or None where that cannot be captured.
    """

    library: str
    stream: int

    def device_name(self) -> str:
        """Name of the GPU, as its driver has it."""

    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, as in (8, 7)."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""

    def free(self, address: int) -> None:
        """Give device memory back."""

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array."""

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array."""

    def synchronize(self) -> None:
        """Wait until the stream is done."""

    def elapsed_ms(self, work: Work) -> float:
        """Milliseconds between an event before `work` and one behind it; waits for both."""

    def capture(self, work: Work) -> Work | None:
        """Return the launch of a graph of `work`, or None."""

    def close(self) -> None:
        """Give back the stream and the graphs."""


def open_cuda() -> Cuda:
    """Return an adapter for the first GPU: pycuda where it can be imported, else cuda-python.

    Raises MissingModule with what to install when neither can be imported, or when there is no GPU with a working driver.
    """
    try:
        return PyCuda(importlib.import_module("pycuda.driver"))
    except ImportError as error:  # not installed, or a library is missing that it was built with
        return CudaPython(_cuda_python(error))


def _cuda_python(instead_of: ImportError) -> Any:
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second is the name before cuda-python 12.6
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingModule(
        f"running an engine needs pycuda ({instead_of}) or cuda-python: pip install pycuda, or pip install cuda-python"
    )


def _no_gpu(reason: object) -> MissingModule:
    return MissingModule(f"running an engine needs an NVIDIA GPU with its driver, and there is none: {reason}")


class PyCuda:
    """The adapter for pycuda, in the primary context, which TensorRT uses too. pycuda has no CUDA graphs."""

    library = "pycuda"

    def __init__(self, driver: Any) -> None:
        """`driver` is the module `pycuda.driver`."""
        try:
            self._device = importlib.import_module("pycuda.autoprimaryctx").device
        except (driver.Error, RuntimeError) as error:
            raise _no_gpu(error) from error
        self._driver = driver
        self._stream = driver.Stream()
        self._memory: dict[int, Any] = {}
        self.stream = int(self._stream.handle)

    def device_name(self) -> str:
        """See `Cuda`."""
        return str(self._device.name())

    def compute_capability(self) -> tuple[int, int]:
        """See `Cuda`."""
        major, minor = self._device.compute_capability()
        return int(major), int(minor)

    def allocate(self, size_bytes: int) -> int:
        """See `Cuda`."""
        with self._reported():
            memory = self._driver.mem_alloc(size_bytes)
        self._memory[int(memory)] = memory  # pycuda frees memory that nobody holds
        return int(memory)

    def free(self, address: int) -> None:
        """See `Cuda`."""
        with suppress(self._driver.Error):
            self._memory.pop(address).free()

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Cuda`."""
        self._driver.memcpy_htod_async(address, array, self._stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Cuda`."""
        self._driver.memcpy_dtoh_async(array, address, self._stream)

    def synchronize(self) -> None:
        """See `Cuda`."""
        with self._reported():
            self._stream.synchronize()

    def elapsed_ms(self, work: Work) -> float:
        """See `Cuda`."""
        start, end = self._driver.Event(), self._driver.Event()
        start.record(self._stream)
        work()
        end.record(self._stream)
        end.synchronize()
        return float(end.time_since(start))

    def capture(self, work: Work) -> Work | None:  # noqa: ARG002 - the same interface as the other adapter
        """See `Cuda`."""
        return None

    def close(self) -> None:
        """See `Cuda`; pycuda gives the stream back with its last reference."""
        del self._stream

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn the error of a full memory or of a failed kernel into CudaError."""
        try:
            yield
        except self._driver.Error as error:
            raise CudaError(str(error)) from error


class CudaPython:
    """The adapter for cuda-python, whose functions return an error code first."""

    library = "cuda-python"

    def __init__(self, runtime: Any) -> None:
        """`runtime` is the module `cuda.bindings.runtime`."""
        self._runtime = runtime
        try:
            self._checked(runtime.cudaGetDeviceCount())
            self._stream = self._checked(runtime.cudaStreamCreate())
        except RuntimeError as error:  # also what cuda-python raises when the driver's library is missing
            raise _no_gpu(error) from error
        self._graphs: list[Any] = []
        self.stream = int(self._stream)

    def device_name(self) -> str:
        """See `Cuda`."""
        name = self._checked(self._runtime.cudaGetDeviceProperties(0)).name
        return str(name.decode().rstrip("\0"))

    def compute_capability(self) -> tuple[int, int]:
        """See `Cuda`."""
        kinds = self._runtime.cudaDeviceAttr
        pair = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        major, minor = (int(self._checked(self._runtime.cudaDeviceGetAttribute(kind, 0))) for kind in pair)
        return major, minor

    def allocate(self, size_bytes: int) -> int:
        """See `Cuda`."""
        return int(self._checked(self._runtime.cudaMalloc(size_bytes)))

    def free(self, address: int) -> None:
        """See `Cuda`."""
        self._runtime.cudaFree(address)

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Cuda`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Cuda`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def synchronize(self) -> None:
        """See `Cuda`."""
        self._checked(self._runtime.cudaStreamSynchronize(self._stream))

    def elapsed_ms(self, work: Work) -> float:
        """See `Cuda`."""
        start, end = (self._checked(self._runtime.cudaEventCreate()) for _ in range(2))
        try:
            self._checked(self._runtime.cudaEventRecord(start, self._stream))
            work()
            self._checked(self._runtime.cudaEventRecord(end, self._stream))
            self._checked(self._runtime.cudaEventSynchronize(end))
            return float(self._checked(self._runtime.cudaEventElapsedTime(start, end)))
        finally:
            self._runtime.cudaEventDestroy(start)
            self._runtime.cudaEventDestroy(end)

    def capture(self, work: Work) -> Work | None:
        """See `Cuda`; a capture that CUDA refuses leaves the stream as it was."""
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except RuntimeError:
            runtime.cudaStreamEndCapture(self._stream)
            return None
        error, graph = runtime.cudaStreamEndCapture(self._stream)
        if error != runtime.cudaError_t.cudaSuccess:
            return None
        try:
            executable = self._checked(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            runtime.cudaGraphDestroy(graph)
        self._graphs.append(executable)
        return lambda: self._checked(runtime.cudaGraphLaunch(executable, self._stream))

    def close(self) -> None:
        """See `Cuda`."""
        for graph in self._graphs:
            self._runtime.cudaGraphExecDestroy(graph)
        self._graphs.clear()
        self._runtime.cudaStreamDestroy(self._stream)

    def _checked(self, result: tuple[Any, ...]) -> Any:
        """Return what a call gave besides its error code, or raise CudaError."""
        error, *values = result
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise CudaError(error.name)
        return values[0] if values else None
