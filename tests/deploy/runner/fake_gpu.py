"""A GPU that is none: it does what it is told at once, on arrays of this process, and writes down the order of the
calls.

It has CUDA's rules for captures: asynchronous work is recorded and not done; a call that waits or allocates fails and
ends the capture, which leaves an error that fails the next enqueue until it is cleared. Its one engine has the input
`x` of `[batch, 3]` float32, for 1 to 4 samples, and the output `y`, twice as large.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from deploy.runner.errors import CudaError
from tests.deploy.runner.fake_cuda import FakeCuda

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


WORKSPACE_BYTES = 64
"""What an engine of TensorRT-RTX needs for its work."""


@dataclass(frozen=True)
class Behaviour:
    """How the runtime behaves.

    1. `rtx`: as TensorRT-RTX, whose engines are given their memory, and whose contexts tell whether they are
       `capturable`.
    2. `waits`: enqueueing waits for the GPU, as where a shape depends on values, and reports nothing but False.
    3. `contexts`: how many contexts fit into memory. `profiles`, `inspects`: whether profiler and inspector work.
    4. `output_rows` replaces the rows of the output.
    """

    output_rows: int | None = None
    rtx: bool = False
    capturable: bool = True
    waits: bool = False
    contexts: int = 100
    profiles: bool = True
    inspects: bool = True


def fake_tensorrt(cuda: FakeCuda, **behaviour: Any) -> ModuleType:
    """Return a module with what running an engine takes; a plan of `b"plan"` loads."""
    how = Behaviour(**behaviour)
    module = ModuleType("fake_tensorrt")
    flags = {"TF32": 1, "REQUIRE_USER_ALLOCATION": 2} if how.rtx else {"TF32": 1}
    members = {
        "ILogger": type("ILogger", (), {}),
        "IProfiler": type("IProfiler", (), {}),
        "Runtime": lambda logger: _Runtime(logger, _RtxEngine(cuda, how) if how.rtx else _Engine(cuda, how)),
        "BuilderFlag": SimpleNamespace(**flags),
        "ExecutionContextAllocationStrategy": SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED"),
        "TensorIOMode": SimpleNamespace(INPUT="INPUT"),
        "LayerInformationFormat": SimpleNamespace(JSON="JSON"),
        "nptype": {"FLOAT": np.float32}.get,
    }
    vars(module).update(members)
    return module


class _Context:
    def __init__(self, cuda: FakeCuda, how: Behaviour) -> None:
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self._cuda = cuda
        self._how = how
        cuda.calls.append("context")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._cuda.calls.append(f"shape {name}")
        fits = name == "x" and len(shape) == 2 and 1 <= shape[0] <= LARGEST_BATCH and shape[1] == 3
        self.shape = shape if fits else None
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None, "the input shape comes first"
        return self.shape if name == "x" or self._how.output_rows is None else (self._how.output_rows, 3)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._cuda.calls.append(f"address {name}")
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._cuda
        if stream != cuda.stream or set(self.addresses) != {"x", "y"} or self.shape is None or cuda.runtime_error:
            return False
        if self._how.waits:
            try:
                cuda.synchronize()
            except CudaError:
                return False
        if self.profiler and not self._how.profiles:
            raise RuntimeError("the profiler has no access to the counters of this GPU")
        cuda._put("profiled enqueue" if self.profiler else "enqueue", self.compute)
        if self.profiler:
            for name, ms in (("double_myl0_1", 0.25 + cuda.calls.count("profiled enqueue") / 100), ("another", 1.0)):
                self.profiler.report_layer_time(name, ms)
        return True

    def compute(self) -> None:
        x, y = (self._cuda.memory[self.addresses[name]].view(np.float32) for name in ("x", "y"))
        np.multiply(x, 2, out=y)


class _RtxContext(_Context):
    """A context that is given its memory."""

    workspace = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        self.workspace = memory, size

    def is_stream_capturable(self, stream: int) -> bool:
        return self._how.capturable and stream == self._cuda.stream

    def execute_async_v3(self, stream: int) -> bool:
        address, size = self.workspace
        there = address in self._cuda.memory and WORKSPACE_BYTES <= size <= len(self._cuda.memory[address])
        assert self._how.capturable or self._cuda.recorded is None, "it said that it cannot be captured"
        return there and super().execute_async_v3(stream)


class _Engine:
    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda, how: Behaviour) -> None:
        self._cuda = cuda
        self._how = how
        self._contexts = 0

    def create_execution_context(self) -> Any:
        return self._made(_Context)

    def _made(self, kind: type[_Context]) -> Any:
        self._contexts += 1
        return kind(self._cuda, self._how) if self._contexts <= self._how.contexts else None

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_dtype(self, _name: str) -> str:
        return "FLOAT"

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, 3)

    def create_engine_inspector(self) -> Any:
        answers = {"JSON": json.dumps(LAYERS)} if self._how.inspects else {"JSON": "no JSON"}
        return SimpleNamespace(get_engine_information=answers.__getitem__)


class _RtxEngine(_Engine):
    device_memory_size_v2 = WORKSPACE_BYTES

    def create_execution_context(self, strategy: str = "STATIC") -> Any:
        assert strategy == "USER_MANAGED", "its engines do not allocate"
        return self._made(_RtxContext)


class _Runtime:
    def __init__(self, logger: Any, engine: _Engine) -> None:
        self._logger = logger
        self._engine = engine

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        if plan == b"plan":
            return self._engine
        self._logger.log("Severity.ERROR", "the plan is of another version")
        return None
