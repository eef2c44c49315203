"""CUDA on a GPU that is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploy.runner.errors import BuildError, CudaError


class FakeCuda:
    """The adapter. `graphs`: it can capture; `memory_bytes`: what fits into its memory."""

    library = "fake"
    stream = 7
    driver_version = (12, 6)
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    l2_bytes = 128
    sm_count = 14

    def __init__(self, *, graphs: bool = True, memory_bytes: int = 1000) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.recorded: list[Callable[[], None]] | None = None
        self.runtime_error = False
        self._invalid = False
        self._graphs = graphs
        self._left = memory_bytes
        self._next = 1 << 40

    def device_name(self) -> str:
        return "Fake"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def memory_bytes(self) -> tuple[int, int]:
        return self._left, 1 << 30

    def allocate(self, size_bytes: int) -> int:
        self._not_captured("allocate")
        if size_bytes > self._left:
            raise CudaError("CUDA_ERROR_OUT_OF_MEMORY (out of memory, code 2) in cuMemAlloc_v2")
        self._left -= size_bytes
        address, self._next = self._next, self._next + 256 * (1 + size_bytes // 256)
        self.memory[address] = np.zeros(size_bytes, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._left += len(self.memory.pop(address))

    def fill(self, address: int, size_bytes: int) -> None:
        def fill() -> None:
            self.memory[address][:size_bytes] = 0

        self._put("fill", fill)

    def copy_to_device(self, address: int, array: np.ndarray) -> None:
        def copy() -> None:
            self.memory[address][:] = array.reshape(-1).view(np.uint8)

        self._put("copy to device", copy)

    def copy_to_host(self, array: np.ndarray, address: int) -> None:
        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.memory[address]

        self._put("copy to host", copy)

    def synchronize(self) -> None:
        self._not_captured("synchronize")

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Half a millisecond for each launch, and two more for one behind a fill."""
        cold = self.calls[-1:] == ["fill"]
        self._not_captured("event")
        start = len(self.calls)
        work()
        launched = len(self.calls) - start
        self.calls.append("event")
        return 0.5 * launched + 2 * cold

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        if not self._graphs:
            return None
        self.calls.append("capture")
        self.recorded, self._invalid = [], False
        try:
            work()
        except (BuildError, RuntimeError):
            self._invalid = True
        graph, self.recorded = self.recorded, None
        if self._invalid:
            self.runtime_error = False  # the adapter clears it
            return None

        def launch() -> None:
            self.calls.append("launch graph")
            for kernel in graph:
                kernel()

        return launch

    def close(self) -> None:
        self.calls.append("close")

    def _put(self, name: str, work: Callable[[], None]) -> None:
        """Do asynchronous work, or record it."""
        self.calls.append(name)
        if self.recorded is not None:
            self.recorded.append(work)
        else:
            work()

    def _not_captured(self, name: str) -> None:
        if self.recorded is not None:
            self._invalid = self.runtime_error = True
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        self.calls.append(name)
