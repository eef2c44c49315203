"""Running an engine: the order of the calls, on a GPU that is none. Nothing here was run on hardware."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from calib.formats import FP16
from deploy.backends.tensorrt import build, build_plan
from deploy.on_device import trt
from deploy.on_device.errors import BuildFailed, DeviceError, MissingModule
from deploy.on_device.gpu import gpu_of
from deploy.on_device.main import run_experiment
from deploy.on_device.protocol import Protocol, measure_engines
from deploy.on_device.trt import TrtEngine, layers_of_plan, open_trt_engine
from deploy.on_device.trt_log import load_module
from tests.deploy.backends.builds import W4B32, needs_rtx
from tests.deploy.backends.graphs import Layer, one_layer
from tests.deploy.on_device.fake_gpu import FakeCuda, fake_tensorrt

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def engine_on(cuda: FakeCuda, x: np.ndarray = X, plan: bytes = b"plan", **options) -> TrtEngine:
    return TrtEngine(fake_tensorrt(cuda, **options), cuda, plan, {"x": x})


def test_an_engine_is_set_up_run_once_and_then_captured():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    assert cuda.calls == [
        "context", "shape x", "allocate", "address x", "allocate", "address y", "copy to device", "synchronize",
        "enqueue", "synchronize", "capture",
    ]  # fmt: skip
    assert engine.clock == "CUDA events, CUDA graph (fake)"


def test_time_is_between_two_events_around_launches_of_the_graph_and_nothing_else():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert engine.time(3) == 0.5
    assert cuda.calls == ["event", "launch graph", "launch graph", "launch graph", "event"]


def test_without_graphs_the_clock_says_so():
    cuda = FakeCuda(captures=False)
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert engine.time(2) == 0.5
    assert cuda.calls == ["event", "enqueue", "enqueue", "event"]
    assert engine.clock == "CUDA events, no CUDA graph (fake)"


@pytest.mark.parametrize("captures", [True, False])
def test_outputs_and_other_inputs(captures):
    cuda = FakeCuda(captures=captures)
    engine = engine_on(cuda)
    first = engine.outputs()
    assert first.keys() == {"y"}
    np.testing.assert_array_equal(first["y"], 2 * X)
    engine.load({"x": X + 1})
    np.testing.assert_array_equal(engine.outputs()["y"], 2 * X + 2)
    np.testing.assert_array_equal(first["y"], 2 * X)  # not overwritten by the second
    cuda.calls.clear()
    engine.run()
    assert cuda.calls == ["launch graph" if captures else "enqueue", "synchronize"]


def test_an_input_that_is_not_contiguous():
    turned = np.asfortranarray(X)
    np.testing.assert_array_equal(engine_on(FakeCuda(), turned).outputs()["y"], 2 * X)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": X.astype(np.float16)}, "is float16 .* takes float32"), ({"x": X[:1]}, r"\(1, 3\).* takes float32 \(2, 3\)"),
    ({"y": X}, "takes the inputs x, and was given y"), ({}, "given none"),
])  # fmt: skip
def test_other_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(DeviceError, match=message):
        engine_on(FakeCuda()).load(inputs)


def test_what_cannot_be_opened_says_why_and_leaves_nothing_on_the_device():
    cuda = FakeCuda()
    with pytest.raises(DeviceError, match=r"shape \(5, 3\) does not fit .* \(-1, 3\): change the input or the batch sizes"):
        engine_on(cuda, np.zeros((5, 3), np.float32))
    with pytest.raises(DeviceError, match="is float64"):
        engine_on(cuda, X.astype(np.float64))
    with pytest.raises(DeviceError, match="'y' depends on the values"):
        engine_on(cuda, output_rows=-1)
    with pytest.raises(BuildFailed, match="does not load on this machine: the plan is of another version"):
        engine_on(cuda, plan=b"other")
    small = FakeCuda(memory_bytes=30)
    with pytest.raises(BuildFailed, match="cudaErrorMemoryAllocation"):
        engine_on(small)
    assert cuda.memory == small.memory == {}


def test_close_gives_everything_back():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    assert len(cuda.memory) == 2
    engine.close()
    assert cuda.memory == {}
    assert cuda.calls[-1] == "close"


def test_layers_carry_the_nodes_they_came_from_and_their_time_from_a_pass_of_its_own():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    doubled, unnoticed = engine.layers()
    assert doubled["onnx_nodes"] == ["block.double", "block.double/Q"]
    assert doubled["ms"] == pytest.approx(0.25 + 0.055)  # the median of ten runs
    assert unnoticed["ms"] is None
    assert cuda.calls[:4] == ["context", "shape x", "address x", "address y"]
    assert cuda.calls.count("profiled enqueue") == 10
    assert "launch graph" not in cuda.calls
    cuda.calls.clear()
    engine.time(1)
    assert cuda.calls == ["event", "launch graph", "event"]


def test_layers_of_a_plan():
    cuda = FakeCuda()
    assert [layer["name"] for layer in layers_of_plan(fake_tensorrt(cuda), b"plan")] == ["double_myl0_1", "unnoticed"]
    with pytest.raises(BuildFailed, match="another version"):
        layers_of_plan(fake_tensorrt(cuda), b"other")


def test_engines_are_measured_by_the_common_protocol():
    cuda = FakeCuda()
    engines = {"float": engine_on(cuda), "candidate": engine_on(cuda)}
    measurement = measure_engines(engines, "float", Protocol(rounds=5, round_ms=2.0))
    assert measurement.clock == "CUDA events, CUDA graph (fake)"
    assert measurement.timings["candidate"].ratio == 1.0


@needs_rtx
def test_a_plan_is_built_for_the_gpu_and_kept(monkeypatch, tmp_path):
    """The building is TensorRT-RTX's own; only what needs the GPU is left out."""
    model, cache, cuda = tmp_path / "model.onnx", tmp_path / "cache", FakeCuda()
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), model)
    monkeypatch.setattr(trt, "open_cuda", lambda: cuda)
    monkeypatch.setattr(trt, "TrtEngine", lambda _module, _cuda, plan, _inputs: SimpleNamespace(plan=plan))
    engines = [open_trt_engine("tensorrt-rtx", model, settings, {}, cache) for settings in ({}, {}, {"workspace_mb": 64})]
    assert engines[0].plan == engines[1].plan
    assert engines[0].plan_sha256 == hashlib.sha256(engines[0].plan).hexdigest()
    assert len(list(cache.glob("*.plan"))) == 2
    assert cuda.calls == []
    with pytest.raises(DeviceError, match="no setting precision: use batch_sizes, workspace_mb, compute_capability"):
        open_trt_engine("tensorrt-rtx", model, {"precision": "int8"}, {}, cache)
    onnx.save(one_layer(Layer("conv2d", W4B32), half=True), model)
    with pytest.raises(BuildFailed, match="blocking dimension") as failed:
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
    monkeypatch.setattr(trt, "open_cuda", lambda: cuda)
    monkeypatch.setattr(build, "open_cuda", lambda: cuda)
    monkeypatch.setattr(build, "layers_of_plan", lambda _module, _plan: [])
    monkeypatch.setattr(trt, "TrtEngine", lambda _module, _cuda, _plan, _inputs: SimpleNamespace())
    timed = open_trt_engine("tensorrt-rtx", model, {}, {}, cache)
    shipped = build_plan(model, tmp_path / "plan", "tensorrt-rtx", "sm86", cache=cache)
    assert shipped.plan_sha256 == timed.plan_sha256
    assert shipped.from_cache


@needs_rtx
def test_the_real_modules_own_objects_are_used_rightly():
    """As far as that goes without a GPU: a profiler can be made, and what is no plan is refused with the runtime's reason."""
    module = load_module("tensorrt-rtx")
    profiler = trt._profiler(module)
    profiler.report_layer_time("a", 0.5)
    assert profiler.times == {"a": [0.5]}
    with pytest.raises(BuildFailed, match=r"does not load on this machine: .*Serialization"):
        layers_of_plan(module, b"no plan" * 100)


@needs_rtx
def test_the_runner_says_what_is_missing(monkeypatch, tmp_path):
    for name in ("pycuda.driver", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)  # import then raises ModuleNotFoundError
    write_experiment(tmp_path)
    with pytest.raises(MissingModule, match="pip install pycuda, or pip install cuda-python"):
        run_experiment(tmp_path)
    assert not (tmp_path / "measurements.json").exists()


def write_experiment(directory):
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), directory / "model.onnx")
    np.savez(directory / "inputs.npz", x=np.zeros((1,), np.float16))
    engine = {"name": "0" * 16, "model": "model.onnx", "settings": {}, "sha256": None}
    plain = {"schema": 2, "runtime": "tensorrt-rtx", "float": engine, "candidates": [{**engine, "name": "1" * 16}], "inputs": "inputs.npz",
             "batch": 1, "protocol": {"rounds": 5, "round_ms": 1.0, "calls": 2, "singles": 0}, "seed": 0, "fingerprint": "f" * 64, "label": ""}  # fmt: skip
    (directory / "experiment.json").write_text(json.dumps(plain), "utf-8")
