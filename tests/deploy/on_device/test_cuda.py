"""The two adapters, on modules that write down what they are called with. Nothing here was run on hardware."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from deploy.on_device import cuda as cuda_module
from deploy.on_device.cuda import CudaError, CudaPython, PyCuda, open_cuda
from deploy.on_device.errors import MissingModule

Status = enum.IntEnum(
    "Status",
    {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorNoDevice": 100, "cudaErrorStreamCaptureInvalidated": 901},
)
CONSTANTS = {
    "cudaError_t": Status,
    "cudaMemcpyKind": SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host"),
    "cudaStreamCaptureMode": SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread"),
    "cudaDeviceAttr": SimpleNamespace(cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=7),
}
RESULTS = {
    "cudaGetDeviceCount": 1, "cudaStreamCreate": 11, "cudaMalloc": 4096, "cudaEventElapsedTime": 1.5, "cudaStreamEndCapture": 21,
    "cudaGraphInstantiate": 22, "cudaGetDeviceProperties": SimpleNamespace(name=b"Orin\0\0"),
}  # fmt: skip


class FakeRuntime:
    """`cuda.bindings.runtime`: every function returns its status first. `status` holds those that do not succeed."""

    def __init__(self, **status: int) -> None:
        self.calls: list[tuple] = []
        self._status = status
        self._events = 0

    def __getattr__(self, name: str):
        if name in CONSTANTS:
            return CONSTANTS[name]

        def call(*arguments: object):
            self.calls.append((name, *arguments))
            status = self._status.get(name, Status.cudaSuccess)
            if name == "cudaEventCreate":
                self._events += 1
                return status, f"event {self._events}"
            if name == "cudaDeviceGetAttribute":
                return status, arguments[0]
            return (status, RESULTS[name]) if name in RESULTS else (status,)

        return call

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


def test_cuda_python_names_the_gpu():
    cuda = CudaPython(FakeRuntime())
    assert (cuda.stream, cuda.device_name(), cuda.compute_capability()) == (11, "Orin", (8, 7))


def test_cuda_python_copies_on_its_stream():
    runtime = FakeRuntime()
    cuda = CudaPython(runtime)
    array = np.zeros((2, 3), np.float32)
    address = cuda.allocate(array.nbytes)
    cuda.copy_to_device(address, array)
    cuda.copy_to_host(array, address)
    cuda.synchronize()
    cuda.free(address)
    here = array.ctypes.data
    assert runtime.calls[2:] == [
        ("cudaMalloc", 24), ("cudaMemcpyAsync", 4096, here, 24, "to device", 11), ("cudaMemcpyAsync", here, 4096, 24, "to host", 11),
        ("cudaStreamSynchronize", 11), ("cudaFree", 4096),
    ]  # fmt: skip


def test_memory_that_cuda_no_longer_takes_back_is_no_error():
    CudaPython(FakeRuntime(cudaFree=Status.cudaErrorMemoryAllocation)).free(4096)


def test_cuda_python_times_between_events():
    runtime = FakeRuntime()
    cuda = CudaPython(runtime)
    runtime.calls.clear()
    assert cuda.elapsed_ms(lambda: runtime.calls.append(("work",))) == 1.5
    assert runtime.calls[2:-2] == [
        ("cudaEventRecord", "event 1", 11), ("work",), ("cudaEventRecord", "event 2", 11), ("cudaEventSynchronize", "event 2"),
        ("cudaEventElapsedTime", "event 1", "event 2"),
    ]  # fmt: skip
    assert runtime.names[-2:] == ["cudaEventDestroy"] * 2


def test_cuda_python_captures_a_graph_and_gives_it_back():
    runtime = FakeRuntime()
    cuda = CudaPython(runtime)
    runtime.calls.clear()
    launch = cuda.capture(lambda: runtime.calls.append(("work",)))
    assert runtime.calls == [
        ("cudaStreamBeginCapture", 11, "thread"), ("work",), ("cudaStreamEndCapture", 11), ("cudaGraphInstantiate", 21, 0),
        ("cudaGraphDestroy", 21),
    ]  # fmt: skip
    runtime.calls.clear()
    launch()
    cuda.close()
    assert runtime.calls == [("cudaGraphLaunch", 22, 11), ("cudaGraphExecDestroy", 22), ("cudaStreamDestroy", 11)]


def test_what_cannot_be_captured_leaves_no_capture_open():
    runtime = FakeRuntime()

    def refuses() -> None:
        raise RuntimeError("not now")

    assert CudaPython(runtime).capture(refuses) is None
    assert runtime.names[-1] == "cudaStreamEndCapture"
    invalid = FakeRuntime(cudaStreamEndCapture=Status.cudaErrorStreamCaptureInvalidated)
    assert CudaPython(invalid).capture(lambda: None) is None


def test_errors_carry_cudas_name_for_them():
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
        CudaPython(FakeRuntime(cudaMalloc=Status.cudaErrorMemoryAllocation)).allocate(1)
    with pytest.raises(MissingModule, match="needs an NVIDIA GPU with its driver, and there is none: cudaErrorNoDevice"):
        CudaPython(FakeRuntime(cudaGetDeviceCount=Status.cudaErrorNoDevice))


class DriverError(Exception):
    pass


def fake_pycuda(monkeypatch, calls: list, *, full: bool = False) -> ModuleType:
    """Put a pycuda into `sys.modules` that writes down its calls."""

    class Memory(int):
        def free(self) -> None:
            calls.append("free")

    class Event:
        def record(self, stream) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

        def time_since(self, _start) -> float:
            return 2.5

    class Stream:
        handle = 13

        def synchronize(self) -> None:
            calls.append("synchronize")

    def mem_alloc(size: int) -> Memory:
        if full:
            raise DriverError("out of memory")
        return Memory(512 + size)

    driver = ModuleType("pycuda.driver")
    copies = {
        name: lambda *arguments, name=name: calls.append((name, *arguments)) for name in ("memcpy_htod_async", "memcpy_dtoh_async")
    }
    vars(driver).update({"Error": DriverError, "Stream": Stream, "Event": Event, "mem_alloc": mem_alloc, **copies})
    context = ModuleType("pycuda.autoprimaryctx")
    context.device = SimpleNamespace(name=lambda: "Orin", compute_capability=lambda: (8, 7))
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", context)
    return driver


def test_pycuda_comes_first_and_has_no_graphs(monkeypatch):
    calls: list = []
    fake_pycuda(monkeypatch, calls)
    cuda = open_cuda()
    assert isinstance(cuda, PyCuda)
    assert (cuda.stream, cuda.device_name(), cuda.compute_capability()) == (13, "Orin", (8, 7))
    assert cuda.capture(lambda: calls.append("work")) is None
    assert calls == []
    assert cuda.elapsed_ms(lambda: calls.append("work")) == 2.5
    assert calls == ["record", "work", "record", "wait"]


def test_pycuda_keeps_its_memory_until_it_is_given_back(monkeypatch):
    calls: list = []
    fake_pycuda(monkeypatch, calls)
    cuda = open_cuda()
    array = np.zeros(4, np.float32)
    address = cuda.allocate(16)
    cuda.copy_to_device(address, array)
    cuda.copy_to_host(array, address)
    assert [call[:2] for call in calls] == [("memcpy_htod_async", address), ("memcpy_dtoh_async", array)]
    cuda.free(address)
    assert calls[-1] == "free"
    fake_pycuda(monkeypatch, calls, full=True)
    with pytest.raises(CudaError, match="out of memory"):
        open_cuda().allocate(16)


def test_cuda_python_is_second_under_both_of_its_names(monkeypatch):
    for name in ("pycuda", "pycuda.driver", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)  # import then raises ModuleNotFoundError
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.cudart", FakeRuntime())
    assert open_cuda().library == "cuda-python"
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(
        MissingModule, match=r"pycuda \(.*pycuda.*\) or cuda-python: pip install pycuda, or pip install cuda-python"
    ):
        open_cuda()


def test_the_installed_cuda_python_has_every_name():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    used = {node.attr for node in ast.walk(ast.parse(inspect.getsource(cuda_module))) if isinstance(node, ast.Attribute)}
    names = {name for name in used if name.startswith("cuda")}
    assert "cudaStreamBeginCapture" in names
    enums = {"cudaMemcpyHostToDevice": "cudaMemcpyKind", "cudaMemcpyDeviceToHost": "cudaMemcpyKind", "cudaSuccess": "cudaError_t",
             "cudaStreamCaptureModeThreadLocal": "cudaStreamCaptureMode", "cudaDevAttrComputeCapabilityMajor": "cudaDeviceAttr",
             "cudaDevAttrComputeCapabilityMinor": "cudaDeviceAttr"}  # fmt: skip
    assert [name for name in sorted(names) if not hasattr(getattr(runtime, enums.get(name, ""), runtime), name)] == []


def test_cuda_python_without_a_gpu(monkeypatch):
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    runtime = importlib.import_module("cuda.bindings.runtime")
    if gpu_answers(runtime):
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingModule, match="needs an NVIDIA GPU"):
        CudaPython(runtime)


def gpu_answers(runtime: ModuleType) -> bool:
    try:
        return runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess
    except RuntimeError:  # the driver's library is missing
        return False
