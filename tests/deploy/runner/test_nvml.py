"""The management library of a GPU, on a library of our own. Nothing here was run on hardware."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from deploy.runner import cuda_library, nvml, state
from deploy.runner.nvml import NvmlReading, read_gpu
from tests.deploy.runner.c_library import compiled


def library(monkeypatch, directory: Path, *options: str) -> ctypes.CDLL:
    file = compiled("fake_nvml.c", directory / "libnvidia-ml.so.1", *options)
    monkeypatch.setattr(nvml, "NVML_LIBRARY", str(file))
    found = ctypes.CDLL(file)
    found.fake_reasons.argtypes = (ctypes.c_ulonglong,)
    return found


def test_of_two_gpus_the_one_that_cuda_takes_is_read(monkeypatch, tmp_path):
    library(monkeypatch, tmp_path)
    monkeypatch.setattr(nvml, "first_gpu_uuid", lambda: "GPU-05152535-4555-6575-8595-a5b5c5d5e5f5")
    assert read_gpu() == NvmlReading("GPU number 1", "GPU-01", 1501.0, 1981.0, 61.0, (), 5_000_000_000)
    monkeypatch.setattr(nvml, "first_gpu_uuid", lambda: None)  # none is visible to CUDA
    assert read_gpu() is None


def test_of_one_gpu_cuda_is_not_asked(monkeypatch, tmp_path):
    library(monkeypatch, tmp_path).fake_gpus(1)
    monkeypatch.setattr(nvml, "first_gpu_uuid", lambda: pytest.fail("CUDA was started"))
    assert read_gpu().name == "GPU number 0"


@pytest.mark.parametrize("options", [(), ("-DOLD",)], ids=["today's names", "the names before driver 535"])
def test_reasons_for_a_lower_clock(monkeypatch, tmp_path, options):
    fake = library(monkeypatch, tmp_path, *options)
    fake.fake_gpus(1)
    fake.fake_reasons(0x1 | 0x4 | 0x40)  # idle, power cap, hardware thermal
    assert read_gpu().limits == ("thermal slowdown by the hardware", "power cap")
    assert read_gpu().thermal_ns == (None if options else 5_000_000_000)


def test_the_state_of_the_machine_has_the_gpus(monkeypatch, tmp_path):
    fake = library(monkeypatch, tmp_path)
    fake.fake_gpus(1)
    before = state.read_state()
    assert (before["gpu_mhz"], before["gpu_max_mhz"], before["temperatures_c"]["gpu"]) == (1500.0, 1980.0, 60.0)
    assert before["counters"]["gpu_thermal_ns"] == 5_000_000_000
    assert "GPU number 0" in state.machine()
    fake.fake_reasons(0x80)
    assert "GPU: power brake" in state.throttle_reasons(before, state.read_state())


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(nvml, "NVML_LIBRARY", "libnvidia_of_no_machine.so.1")
    assert read_gpu() is None


def test_without_a_driver_cuda_takes_no_gpu(monkeypatch):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", "libcuda_of_no_machine.so.1")
    assert cuda_library.first_gpu_uuid() is None
