"""Which adapter is taken, and the one for pycuda, on a module that writes down what it is called with. Nothing here was
run on hardware.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from deploy.runner import cuda_library
from deploy.runner.cuda import open_cuda
from deploy.runner.cuda_pycuda import PyCuda
from deploy.runner.errors import CudaError, MissingModule


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", "libcuda_of_no_machine.so.1")


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
    names = ("memcpy_htod_async", "memcpy_dtoh_async", "memset_d8_async")
    copies = {name: lambda *arguments, name=name: calls.append((name, *arguments)) for name in names}
    told = {"get_driver_version": lambda: 12060, "mem_get_info": lambda: (6, 8),
            "device_attribute": SimpleNamespace(L2_CACHE_SIZE=4 << 20, MULTIPROCESSOR_COUNT=14)}  # fmt: skip
    vars(driver).update(
        {"Error": DriverError, "Stream": Stream, "Event": Event, "mem_alloc": mem_alloc, **copies, **told}
    )
    context = ModuleType("pycuda.autoprimaryctx")
    context.device = SimpleNamespace(
        name=lambda: "Orin", compute_capability=lambda: (8, 7), get_attribute=lambda kind: kind
    )
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", context)
    return driver


def test_pycuda_is_second_and_has_no_graphs(monkeypatch):
    calls: list = []
    fake_pycuda(monkeypatch, calls)
    cuda = open_cuda()
    assert isinstance(cuda, PyCuda)
    assert (cuda.stream, cuda.device_name(), cuda.compute_capability()) == (13, "Orin", (8, 7))
    assert (cuda.driver_version, cuda.l2_bytes, cuda.sm_count, cuda.uuid) == ((12, 6), 4 << 20, 14, None)
    assert cuda.memory_bytes() == (6, 8)
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
    cuda.fill(address, 16)
    assert [call[:3] for call in calls] == [
        ("memcpy_htod_async", address, array), ("memcpy_dtoh_async", array, address), ("memset_d8_async", address, 0),
    ]  # fmt: skip
    cuda.free(address)
    assert calls[-1] == "free"
    fake_pycuda(monkeypatch, calls, full=True)
    with pytest.raises(CudaError, match="out of memory"):
        open_cuda().allocate(16)


def test_without_both_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)  # import then raises ModuleNotFoundError
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(
        MissingModule, match=r"does not load \(libcuda_of_no_machine.*\): install the driver; in a container"
    ):
        open_cuda()
