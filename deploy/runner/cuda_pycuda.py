"""CUDA through pycuda, for machines where the driver's library has another name than usual."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy.typing as npt

from deploy.runner.errors import CudaError, MissingModule


class PyCuda:
    """The adapter for pycuda, in the primary context, which TensorRT uses too. pycuda has no CUDA graphs, and tells no
    UUID.
    """

    library = "pycuda"
    uuid: str | None = None

    def __init__(self, driver: Any) -> None:
        """`driver` is the module `pycuda.driver`."""
        try:
            self._device = importlib.import_module("pycuda.autoprimaryctx").device
        except (driver.Error, RuntimeError) as error:
            raise MissingModule(
                f"running an engine needs an NVIDIA GPU with its driver, and pycuda finds none: {error}"
            ) from error
        self._driver = driver
        self._stream = driver.Stream()
        self._memory: dict[int, Any] = {}
        self.stream = int(self._stream.handle)
        version, kinds = driver.get_driver_version(), driver.device_attribute
        self.driver_version = version // 1000, version % 1000 // 10
        self.l2_bytes = int(self._device.get_attribute(kinds.L2_CACHE_SIZE))
        self.sm_count = int(self._device.get_attribute(kinds.MULTIPROCESSOR_COUNT))

    def device_name(self) -> str:
        """See `Cuda`."""
        return str(self._device.name())

    def compute_capability(self) -> tuple[int, int]:
        """See `Cuda`."""
        major, minor = self._device.compute_capability()
        return int(major), int(minor)

    def memory_bytes(self) -> tuple[int, int]:
        """See `Cuda`."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

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

    def fill(self, address: int, size_bytes: int) -> None:
        """See `Cuda`."""
        with self._reported():
            self._driver.memset_d8_async(address, 0, size_bytes, self._stream)

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Cuda`."""
        with self._reported():
            self._driver.memcpy_htod_async(address, array, self._stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Cuda`."""
        with self._reported():
            self._driver.memcpy_dtoh_async(array, address, self._stream)

    def synchronize(self) -> None:
        """See `Cuda`."""
        with self._reported():
            self._stream.synchronize()

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """See `Cuda`."""
        with self._reported():
            start, end = self._driver.Event(), self._driver.Event()
            start.record(self._stream)
            work()
            end.record(self._stream)
            end.synchronize()
            return float(end.time_since(start))

    # the same interface as the other adapter
    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:  # noqa: ARG002
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
