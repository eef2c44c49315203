"""A GPU that is none: it does what it is told at once, on arrays of this process, and writes down the order of the calls.

Its one engine has the input `x` of `[batch, 3]` float32, for 1 to 4 samples, and the output `y`, twice as large.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from deploy.on_device.errors import CudaError

LARGEST_BATCH = 4
LAYERS = {
    "Layers": [
        {
            "Name": "double_myl0_1",
            "LayerType": "kgen",
            "Inputs": [{"Name": "x", "Dimensions": [2, 3], "Datatype": "Float"}],
            "Outputs": [{"Name": "y", "Dimensions": [2, 3], "Datatype": "Float"}],
            "Constants": [],
            "Metadata": "[ONNX Layer: block.double]\x1f[ONNX Layer: block.double/Q]",
        },
        {"Name": "unnoticed", "LayerType": "NoOp", "Inputs": [], "Outputs": [], "Metadata": ""},
    ]
}


class FakeCuda:
    """The adapter. `captures`: it makes graphs; `memory_bytes`: what fits into its memory."""

    library = "fake"
    stream = 7
    driver_version = (12, 6)
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    l2_bytes = 4096
    sm_count = 14

    def __init__(self, *, captures: bool = True, memory_bytes: int = 1000) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.recorded: list[Callable[[], None]] | None = None
        self._captures = captures
        self._left = memory_bytes

    def device_name(self) -> str:
        return "Fake"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def memory_bytes(self) -> tuple[int, int]:
        return self._left, 1 << 30

    def fill(self, address: int, size_bytes: int) -> None:
        self.calls.append("fill")
        self.memory[address][:size_bytes] = 0

    def allocate(self, size_bytes: int) -> int:
        if size_bytes > self._left:
            raise CudaError("cudaErrorMemoryAllocation")
        self._left -= size_bytes
        address = 1000 + 256 * len(self.calls)
        self.memory[address] = np.zeros(size_bytes, np.uint8)
        self.calls.append("allocate")
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def copy_to_device(self, address: int, array: np.ndarray) -> None:
        self.calls.append("copy to device")
        self.memory[address][:] = array.reshape(-1).view(np.uint8)

    def copy_to_host(self, array: np.ndarray, address: int) -> None:
        self.calls.append("copy to host")
        array.reshape(-1).view(np.uint8)[:] = self.memory[address]

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        self.calls.append("event")
        start = len(self.calls)
        work()
        launched = len(self.calls) - start
        self.calls.append("event")
        return 0.5 * launched

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        self.calls.append("capture")
        if not self._captures:
            return None
        self.recorded = []
        work()
        graph, self.recorded = self.recorded, None

        def launch() -> None:
            self.calls.append("launch graph")
            for kernel in graph:
                kernel()

        return launch

    def close(self) -> None:
        self.calls.append("close")


def fake_tensorrt(cuda: FakeCuda, *, output_rows: int | None = None) -> ModuleType:
    """Return a module with what running an engine takes; a plan of `b"plan"` loads. `output_rows` replaces the rows of the output."""
    module = ModuleType("fake_tensorrt")
    members = {
        "ILogger": type("ILogger", (), {}),
        "IProfiler": type("IProfiler", (), {}),
        "Runtime": lambda logger: _Runtime(logger, lambda: _Context(cuda, output_rows)),
        "TensorIOMode": SimpleNamespace(INPUT="INPUT"),
        "LayerInformationFormat": SimpleNamespace(JSON="JSON"),
        "nptype": {"FLOAT": np.float32}.get,
    }
    vars(module).update(members)
    return module


class _Context:
    def __init__(self, cuda: FakeCuda, output_rows: int | None) -> None:
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self._cuda = cuda
        self._output_rows = output_rows
        cuda.calls.append("context")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._cuda.calls.append(f"shape {name}")
        fits = name == "x" and len(shape) == 2 and 1 <= shape[0] <= LARGEST_BATCH and shape[1] == 3
        self.shape = shape if fits else None
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None, "the input shape comes first"
        return self.shape if name == "x" or self._output_rows is None else (self._output_rows, 3)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._cuda.calls.append(f"address {name}")
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._cuda
        if stream != cuda.stream or set(self.addresses) != {"x", "y"} or self.shape is None:
            return False
        if cuda.recorded is not None:
            cuda.recorded.append(self.compute)
            return True
        cuda.calls.append("profiled enqueue" if self.profiler else "enqueue")
        self.compute()
        if self.profiler:
            for name, ms in (("double_myl0_1", 0.25 + cuda.calls.count("profiled enqueue") / 100), ("another", 1.0)):
                self.profiler.report_layer_time(name, ms)
        return True

    def compute(self) -> None:
        x, y = (self._cuda.memory[self.addresses[name]].view(np.float32) for name in ("x", "y"))
        np.multiply(x, 2, out=y)


class _Engine:
    num_io_tensors = 2

    def __init__(self, new_context: Callable[[], _Context]) -> None:
        self.create_execution_context = new_context

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_dtype(self, _name: str) -> str:
        return "FLOAT"

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, 3)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information={"JSON": json.dumps(LAYERS)}.__getitem__)


class _Runtime:
    def __init__(self, logger: Any, new_context: Callable[[], _Context]) -> None:
        self._logger = logger
        self._new_context = new_context

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        if plan == b"plan":
            return _Engine(self._new_context)
        self._logger.log("Severity.ERROR", "the plan is of another version")
        return None
