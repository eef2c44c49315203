"""The adapter for the driver's library, on a library of our own that has CUDA's rules. Nothing here was run on
hardware.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from deploy.runner import cuda_library
from deploy.runner.cuda import open_cuda
from deploy.runner.cuda_driver import DriverCuda
from deploy.runner.cuda_library import first_gpu_uuid
from deploy.runner.errors import BuildError, CudaError, MissingModule
from tests.deploy.runner.c_library import compiled, folder_of_header

X = np.arange(6, dtype=np.float32)


@pytest.fixture(scope="module")
def library_file(tmp_path_factory):
    return compiled("fake_driver.c", tmp_path_factory.mktemp("driver") / "libcuda.so.1")


class Driver:
    """The library's own side: what was called since the last look, and the answer that cuInit gives."""

    def __init__(self, file):
        self._library = ctypes.CDLL(file)
        self._library.fake_calls.restype = ctypes.c_char_p

    def calls(self):
        lines = self._library.fake_calls().decode().splitlines()
        self._library.fake_reset(0)
        return lines

    def answer(self, code):
        self._library.fake_reset(code)

    def graphs(self):
        return self._library.fake_graphs()


@pytest.fixture
def driver(library_file, monkeypatch):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", str(library_file))
    found = Driver(library_file)
    found.answer(0)
    return found


@pytest.fixture
def cuda(driver):
    opened = open_cuda()
    assert isinstance(opened, DriverCuda)
    driver.calls()
    return opened


def test_it_takes_the_primary_context_and_a_stream_that_waits_for_no_other(driver):
    open_cuda()
    assert driver.calls() == ["cuInit 0", "retain 5", "current", "stream 1", "event 0", "event 0"]


def test_what_it_tells_of_the_gpu(cuda):
    assert (cuda.device_name(), cuda.compute_capability(), cuda.driver_version) == ("Fake GPU", (8, 7), (12, 6))
    assert (cuda.l2_bytes, cuda.sm_count, cuda.memory_bytes()) == (4 << 20, 14, (6 << 30, 8 << 30))
    assert cuda.uuid == first_gpu_uuid() == "GPU-05152535-4555-6575-8595-a5b5c5d5e5f5"
    assert cuda.stream == 0x7A0000000003


def test_copies_and_fills_are_on_its_stream(cuda, driver):
    back = np.full_like(X, 7)
    address = cuda.allocate(X.nbytes)
    cuda.copy_to_device(address, X)
    cuda.copy_to_host(back, address)
    cuda.synchronize()
    np.testing.assert_array_equal(back, X)
    cuda.fill(address, 12)
    cuda.copy_to_host(back, address)
    np.testing.assert_array_equal(back, [0, 0, 0, 3, 4, 5])
    cuda.free(address)
    copies = ["to device 24", "to host 24", "synchronize", "fill 0 12", "to host 24"]
    assert driver.calls() == ["allocate 24", *copies, "free"]


def test_an_error_has_its_name_and_words(cuda):
    with pytest.raises(CudaError, match=r"^CUDA_ERROR_OUT_OF_MEMORY \(out of memory, code 2\) in cuMemAlloc_v2$"):
        cuda.allocate(9 << 30)


def test_time_is_between_two_events(cuda, driver):
    assert cuda.elapsed_ms(cuda.synchronize) == 1.5
    assert driver.calls() == ["record 1", "synchronize", "record 2", "wait 2"]


def test_a_graph_is_captured_launched_and_given_back(cuda, driver):
    address, back = cuda.allocate(24), np.full_like(X, 7)
    cuda.copy_to_device(address, X)
    driver.calls()
    launch = cuda.capture(lambda: cuda.copy_to_host(back, address))
    np.testing.assert_array_equal(back, 7)  # recorded, and not done
    assert driver.calls() == ["begin capture 1", "to host 24", "end capture", "instantiate 0", "destroy graph"]
    launch()
    np.testing.assert_array_equal(back, X)
    cuda.close()
    assert driver.calls() == ["launch", "destroy launch", "destroy event 1", "destroy event 2", "destroy stream"]
    assert driver.graphs() == 0


def refuses():
    raise BuildError("the runtime does not take the work")


@pytest.mark.parametrize("what", ["waits", "allocates", "refuses", "goes on"])
def test_after_a_failed_capture_nothing_is_left_and_the_stream_works(cuda, driver, what):
    def goes_on():
        cuda._library.cuStreamSynchronize(cuda._stream)  # as a runtime that does not look at the answer

    work = {"waits": cuda.synchronize, "allocates": lambda: cuda.allocate(8), "refuses": refuses, "goes on": goes_on}[
        what
    ]
    assert cuda.capture(work) is None
    assert "end capture" in driver.calls()
    assert driver.graphs() == 0
    address, back = cuda.allocate(24), np.zeros_like(X)
    cuda.copy_to_device(address, X)
    cuda.copy_to_host(back, address)
    cuda.synchronize()
    np.testing.assert_array_equal(back, X)
    assert cuda.capture(lambda: cuda.fill(address, 24)) is not None


def test_a_bug_during_a_capture_is_raised_when_the_capture_has_ended(cuda, driver):
    with pytest.raises(KeyError):
        cuda.capture(lambda: {}["x"])
    assert driver.calls() == ["begin capture 1", "end capture", "destroy graph"]


def test_a_failed_capture_clears_the_last_error_of_the_runtime(library_file, tmp_path):
    """In a process of its own, so that no other test meets that runtime."""
    runtime = compiled("fake_runtime.c", tmp_path / "libcudart.so.12")
    program = f"""
import ctypes
from deploy.runner import cuda_library
from deploy.runner.cuda import open_cuda
cuda_library.DRIVER_LIBRARY = {str(library_file)!r}
runtime = ctypes.CDLL({str(runtime)!r})
cuda = open_cuda()
def fails():
    runtime.fake_error(901)
    cuda.synchronize()
assert cuda.capture(fails) is None
print(runtime.cudaPeekAtLastError())
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.mark.parametrize(
    ("code", "todo"),
    [
        (34, "stub of the CUDA toolkit"),
        (100, "sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (803, "another version than its kernel module: restart the machine"),
        (999, "load the kernel module nvidia_uvm"),
        (46, "look at nvidia-smi, and restart"),
    ],
)
def test_a_driver_that_does_not_start_says_what_is_there_and_what_to_do(driver, code, todo):
    driver.answer(code)
    with pytest.raises(MissingModule, match=rf"libcuda\.so\.1 \(for CUDA 12\.6\) answers .*code {code}\): .*{todo}"):
        open_cuda()
    driver.answer(code)
    assert first_gpu_uuid() is None


def test_a_driver_that_is_too_old(monkeypatch):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", None)  # the process itself, which has no such functions
    with pytest.raises(
        MissingModule, match=r"a driver for CUDA 11\.4 or later, and .* has no cuInit: update the driver"
    ):
        open_cuda()


def test_the_library_has_the_types_of_cudas_header(tmp_path):
    """So that what the adapter passes, which the library checks, is what CUDA takes."""
    folder = folder_of_header("cuda.h")
    compiled("fake_driver.c", tmp_path / "libcuda.so.1", "-DWITH_CUDA_H", f"-I{folder}")
