"""Building an engine for the GPU of this machine: what is kept, and what is said where something is missing."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from calib.formats.format import FP16
from deploy.backends.tensorrt import build, build_plan
from deploy.runner import cuda_library, trt_open
from deploy.runner.errors import BuildError, DeviceError, MissingModule
from deploy.runner.gpu import gpu_of
from deploy.runner.main import run_experiment
from deploy.runner.trt_open import open_trt_engine
from tests.deploy.backends.builds import W4B32, needs_rtx
from tests.deploy.backends.graphs import Layer, one_layer
from tests.deploy.runner.fake_cuda import FakeCuda
from tests.deploy.runner.fake_gpu import fake_tensorrt


@needs_rtx
def test_a_plan_is_built_for_the_gpu_and_kept(monkeypatch, tmp_path):
    """The building is TensorRT-RTX's own; only what needs the GPU is left out."""
    model, cache, cuda = tmp_path / "model.onnx", tmp_path / "cache", FakeCuda()
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), model)
    monkeypatch.setattr(trt_open, "open_cuda", lambda: cuda)
    monkeypatch.setattr(trt_open, "TrtEngine", lambda _module, _cuda, plan, _inputs: SimpleNamespace(plan=plan))
    engines = [
        open_trt_engine("tensorrt-rtx", model, settings, {}, cache) for settings in ({}, {}, {"workspace_mb": 64})
    ]
    assert engines[0].plan == engines[1].plan
    assert engines[0].plan_sha256 == hashlib.sha256(engines[0].plan).hexdigest()
    assert len(list(cache.glob("*.plan"))) == 2
    assert cuda.calls == []
    with pytest.raises(
        DeviceError, match="no setting precision: use batch_sizes, sizes, workspace_mb, compute_capability"
    ):
        open_trt_engine("tensorrt-rtx", model, {"precision": "int8"}, {}, cache)
    onnx.save(one_layer(Layer("conv2d", W4B32), half=True), model)
    with pytest.raises(BuildError, match="blocking dimension") as failed:
        open_trt_engine("tensorrt-rtx", model, {}, {}, cache)
    assert failed.value.nodes == ("unit/DQw",)
    assert cuda.calls == ["close", "close"]
    assert str(gpu_of(cuda)) == "Fake sm87"


@needs_rtx
def test_rtx_times_the_plan_that_is_shipped(monkeypatch, tmp_path):
    """Both are built for the compute capability of the GPU."""
    model, cache, cuda = tmp_path / "model.onnx", tmp_path / "cache", FakeCuda()
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), model)
    monkeypatch.setattr(cuda, "compute_capability", lambda: (8, 6))
    monkeypatch.setattr(trt_open, "open_cuda", lambda: cuda)
    monkeypatch.setattr(build, "open_cuda", lambda: cuda)
    monkeypatch.setattr(build, "layers_of_plan", lambda _module, _plan: [])
    monkeypatch.setattr(trt_open, "TrtEngine", lambda _module, _cuda, _plan, _inputs: SimpleNamespace())
    timed = open_trt_engine("tensorrt-rtx", model, {}, {}, cache)
    shipped = build_plan(model, tmp_path / "plan", "tensorrt-rtx", "sm86", cache=cache)
    assert shipped.row.sha256 == timed.plan_sha256
    assert shipped.row.from_cache


@pytest.mark.parametrize("text", [
    "Error Code 1: Cuda Runtime (CUDA driver version is insufficient for CUDA runtime version)",
    "CUDA initialization failure with error: 35. Please check your CUDA installation",
])  # fmt: skip
def test_a_driver_that_is_too_old_for_the_runtime(monkeypatch, tmp_path, text):
    """A runtime that does not start makes no object, which its bindings report as a TypeError."""
    cuda = FakeCuda()
    module = fake_tensorrt(cuda)

    def builder(logger):
        logger.log("Severity.ERROR", text)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = builder
    module.__version__ = "10.16.0"
    monkeypatch.setattr(trt_open, "open_cuda", lambda: cuda)
    monkeypatch.setattr(trt_open, "load_module", lambda _: module)
    message = (
        r"tensorrt 10\.16\.0 needs a newer driver than the one here, which is for CUDA 12\.6: update the driver, "
        r"or install"
    )
    with pytest.raises(MissingModule, match=message):
        open_trt_engine("tensorrt", tmp_path / "model.onnx", {}, {}, tmp_path)
    assert cuda.calls == ["close"]


@needs_rtx
def test_the_runner_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", "libcuda_of_no_machine.so.1")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)  # import then raises ModuleNotFoundError
    write_experiment(tmp_path)
    with pytest.raises(MissingModule, match="install the driver"):
        run_experiment(tmp_path)
    assert not (tmp_path / "measurements.json").exists()


def write_experiment(directory):
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), directory / "model.onnx")
    np.savez(directory / "inputs.npz", x=np.zeros((1,), np.float16))
    engine = {"name": "0" * 16, "model": "model.onnx", "settings": {}, "sha256": None}
    plain = {"schema": 4, "runtime": "tensorrt-rtx", "float": engine, "candidates": [{**engine, "name": "1" * 16}],
             "inputs": "inputs.npz", "batch": 1,
             "protocol": {"rounds": 5, "round_ms": 1.0, "calls": 2, "singles": 0, "sets": 1, "seconds": 60},
             "seed": 0, "fingerprint": "f" * 64, "label": ""}  # fmt: skip
    (directory / "experiment.json").write_text(json.dumps(plain), "utf-8")
