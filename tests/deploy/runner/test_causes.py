"""Why an engine was not timed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploy.devices.bundle import write_bundle
from deploy.runner import bench
from deploy.runner.causes import failure_of
from deploy.runner.errors import BuildError, CudaError, DeviceError
from deploy.runner.main import main, run_experiment
from deploy.runner.protocol import NotComparable
from tests.deploy.experiments import experiment


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BuildError("no implementation for node conv1"), "refused"),
        (BuildError("no kernel for [memory] and 'timeout'"), "refused"),
        (BuildError("Error Code 1: Cuda Runtime (out of memory)"), "transient"),
        (BuildError("Error Code 2: OutOfMemory (Requested size was 4096 bytes.)"), "transient"),
        (BuildError("the engine does not run on this GPU: cudaErrorMemoryAllocation"), "transient"),
        (NotComparable("engines with different clocks cannot be compared"), "internal"),
        (ort_errors.NotImplemented("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED"), "refused"),
        (ort_errors.RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"), "transient"),
        (MemoryError("std::bad_alloc"), "transient"),
        (RuntimeError("std::bad_alloc"), "transient"),
        (RuntimeError("a C++ exception of a binding"), "refused"),
        (
            CudaError("CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access, code 700) in cuStreamSynchronize"),
            "refused",
        ),
        (CudaError("CUDA_ERROR_OUT_OF_MEMORY (code 2) in cuMemAlloc_v2"), "transient"),
        (CudaError("CUDA_ERROR_DEVICE_UNAVAILABLE (code 46) in cuDevicePrimaryCtxRetain"), "transient"),
        (CudaError("CUDA_ERROR_LAUNCH_TIMEOUT (code 702) in cuEventSynchronize"), "transient"),
        (CudaError("CUDA_ERROR_ECC_UNCORRECTABLE (code 214) in cuEventSynchronize"), "transient"),
        (BuildError("Error Code 1: Cuda Runtime (cudaErrorDevicesUnavailable)"), "transient"),
        (OSError(12, "Cannot allocate memory"), "transient"),
        (TypeError("unsupported operand"), "internal"),
        (AttributeError("no attribute 'memory'"), "internal"),
        (KeyError("ratio"), "internal"),
        (AssertionError(), "internal"),
        (NotImplementedError("of ours"), "internal"),
        (ValueError("zip() argument 2 is shorter"), "internal"),
    ],
)
def test_causes(error, cause):
    assert failure_of(error).cause == cause


def test_reasons_are_short_and_bugs_say_where():
    assert len(failure_of(BuildError("x" * 10_000)).reason) < 2010
    with pytest.raises(KeyError) as raised:
        _ = {}["ratio"]
    assert failure_of(raised.value).reason.startswith("KeyError: 'ratio' (test_causes.py, line ")


@pytest.fixture
def directory(tmp_path):
    write_bundle(experiment(tmp_path / "models", (4, 32)), tmp_path / "bundle")
    return tmp_path / "bundle"


def opening(monkeypatch, directory, errors):
    """Opening the first candidate raises these, one after the other, and then succeeds."""
    first = json.loads((directory / "experiment.json").read_text())["candidates"][0]["name"]

    def opener(model, *others):
        if model.stem == first and errors:
            raise errors.pop(0)
        return bench.open_ort_engine(model, *others)

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})


def failures(directory):
    return [(entry["cause"], entry["failed"]) for entry in run_experiment(directory, str)["results"]]


def test_what_passes_is_tried_once_more(directory, monkeypatch):
    opening(monkeypatch, directory, [MemoryError("std::bad_alloc")])
    assert failures(directory) == [(None, None)] * 2


@pytest.mark.parametrize(
    ("errors", "cause", "reason"),
    [
        ([MemoryError("std::bad_alloc"), MemoryError("std::bad_alloc")], "transient", "MemoryError: std::bad_alloc"),
        ([KeyError("x")], "internal", "a bug of smpq, not of the model: KeyError: 'x' ("),
    ],
)
def test_what_is_no_refusal_is_measured_again_the_next_time(directory, monkeypatch, errors, cause, reason):
    opening(monkeypatch, directory, list(errors))
    (first, second) = failures(directory)
    assert first[0] == cause
    assert first[1].startswith(reason)
    assert second == (None, None)
    assert failures(directory) == [(None, None)] * 2


def test_a_refusal_lasts(directory, monkeypatch):
    opening(monkeypatch, directory, [BuildError("no kernel")])
    assert failures(directory)[0] == ("refused", "no kernel")
    assert failures(directory)[0] == ("refused", "no kernel")


@pytest.mark.parametrize(
    ("death", "cause"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "refused"), ("os.kill(os.getpid(), signal.SIGKILL)", "transient")],
)
def test_a_crash_of_the_runtime_is_a_refusal_and_a_kill_is_not(directory, death, cause):
    program = f"""
import os, signal, sys
from deploy.runner import bench, main
deadly = {json.loads((directory / "experiment.json").read_text())["candidates"][0]["name"]!r}
def opener(model, *others):
    if model.stem == deadly:
        {death}
    return bench.open_ort_engine(model, *others)
bench.OPENERS = {{"onnxruntime": opener}}
sys.exit(main.main([sys.argv[1]]))
"""
    codes = [
        subprocess.run([sys.executable, "-c", program, directory], check=False, capture_output=True).returncode
        for _ in range(3)
    ]
    assert [code < 0 for code in codes] == [True, True, False]
    first, second = json.loads((directory / "measurements.json").read_text())["results"]
    assert (first["cause"], second["cause"]) == (cause, None)
    assert "died 2 times" in first["failed"]
    assert not (directory / "crash.log").exists()


def test_times_of_zero_are_no_figures(directory, monkeypatch):
    class Zero:
        def __init__(self, engine):
            self._engine = engine

        def __getattr__(self, name):
            return getattr(self._engine, name)

        def time(self, _repeats):
            return 0.0

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": lambda *arguments: Zero(bench.open_ort_engine(*arguments))})
    with pytest.raises(DeviceError, match="too coarse"):
        run_experiment(directory, str)
    assert not (directory / "measurements.json").exists()


@pytest.mark.parametrize("text", ['{"schema": NaN}', '{"schema": Infinity}', "[" * 100_000, '{"schema": 1e999'])
def test_files_that_are_no_json_are_one_message(directory, text, capsys):
    for name in ("experiment.json", "measurements.json"):
        before = (directory / name).read_text() if (directory / name).exists() else None
        (directory / name).write_text(text)
        assert main([str(directory)]) == 2
        assert "cannot be read" in capsys.readouterr().err
        if before is not None:
            (directory / name).write_text(before)


def test_half_a_model_is_no_refusal(directory):
    file = next(directory.glob("*.onnx"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DeviceError, match="is not what was written: copy the whole directory again"):
        run_experiment(directory, str)


def test_onnxruntimes_own_exceptions_are_known():
    """Each of them is of a module of its package: a new version that moves them would turn refusals into bugs."""
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    ):
        assert failure_of(getattr(ort_errors, name)("x")).cause == "refused"
