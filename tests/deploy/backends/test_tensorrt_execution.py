"""Running a plan from a run's directory, on a GPU that is none. Nothing here was run on hardware."""

from __future__ import annotations

import numpy as np
import pytest

from calib.errors import UserError
from deploy.backends.tensorrt import PlanRunner, build, execution, gpu_sm, open_plan
from tests.deploy.backends.builds import W8A8, build_layer, needs_rtx
from tests.deploy.backends.graphs import Layer
from tests.deploy.runner.fake_cuda import FakeCuda
from tests.deploy.runner.fake_gpu import fake_tensorrt

X = np.ones((2, 3), np.float32)


@pytest.fixture
def gpu(monkeypatch):
    cuda = FakeCuda()
    module = fake_tensorrt(cuda)
    monkeypatch.setattr(execution, "open_cuda", lambda: cuda)
    monkeypatch.setattr(execution, "load", lambda _runtime: module)
    return cuda


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "engine.plan"
    file.write_bytes(b"plan")
    return file


def test_the_gpu_is_named_as_in_the_target(gpu):
    assert gpu_sm() == "sm87"
    assert gpu.calls == ["close"]


def test_one_engine_takes_batch_after_batch(gpu, plan):
    runner = PlanRunner(plan, "tensorrt", ["x"])
    for factor in (1, 2, 3):
        (output,) = runner.run([factor * X])
        np.testing.assert_array_equal(output, 2 * factor * X)
    assert gpu.calls.count("context") == 1
    with pytest.raises(UserError, match="change the input"):
        runner.run([X.astype(np.float16)])


def test_a_plan_is_opened_anew_for_other_shapes(gpu, plan):
    runner = PlanRunner(plan, "tensorrt", ["x"])
    runner.run([X])
    np.testing.assert_array_equal(runner.run([X[:1]])[0], 2 * X[:1])
    assert gpu.calls.count("context") == 2
    assert gpu.calls.count("close") == 1


def test_an_open_plan_is_timed(gpu, plan):
    engine = open_plan(plan, "tensorrt", {"x": X})
    assert engine.time(2) == 0.5
    assert engine.clock.startswith("CUDA events")
    engine.close()
    assert gpu.memory == {}


def test_what_does_not_run_is_said_in_one_message(gpu, plan):
    with pytest.raises(UserError, match=r"engine\.plan: .* takes the inputs x"):
        open_plan(plan, "tensorrt", {"y": X})
    plan.write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"engine\.plan does not run here .*another version\): build it on this machine"
    ):
        open_plan(plan, "tensorrt", {"x": X})
    assert gpu.calls[-1] == "close"
    assert gpu.memory == {}


@needs_rtx
def test_with_a_gpu_the_inspector_lists_the_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "open_cuda", FakeCuda)
    layers = [{"kind": "gemm", "name": "a", "inputs": [], "constants": [], "outputs": [], "onnx_nodes": ["unit"]}]
    monkeypatch.setattr(build, "layers_of_plan", lambda _module, _plan: layers)
    record = build_layer(Layer("conv2d", W8A8), tmp_path)
    assert [kernel.kind for kernel in record.layers] == ["gemm"]

    def unreadable(_module, _plan):
        raise ValueError("unknown description of an engine's layers")

    monkeypatch.setattr(build, "layers_of_plan", unreadable)
    record = build_layer(Layer("conv2d", W8A8), tmp_path)
    assert "correlation" in [kernel.kind for kernel in record.layers]  # from the log
    assert any("unknown description" in warning for warning in record.row.warnings)
