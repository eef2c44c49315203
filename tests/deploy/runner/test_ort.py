"""ONNX Runtime engines as the runner opens them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from deploy.runner.errors import BuildError, DeviceError
from deploy.runner.ort import open_ort_engine, open_session
from deploy.runner.ort_sessions import BoundSession
from tests.deploy.experiments import SETTINGS, WIDTH, broken_candidate, model_file

INPUTS = {"x": np.arange(WIDTH, dtype=np.float32)[None]}


def opened(tmp_path, layers=4, **settings):
    return open_ort_engine(model_file(tmp_path, layers), {**SETTINGS, **settings}, INPUTS, tmp_path)


def test_an_engine_runs_and_is_timed(tmp_path):
    small, large = opened(tmp_path), opened(tmp_path, layers=64)
    np.testing.assert_array_equal(small.outputs()["y"], INPUTS["x"])
    assert small.clock == "thread CPU time"
    assert small.layers() == (None, None)
    assert 0 < min(small.time(20) for _ in range(5)) < min(large.time(20) for _ in range(5))
    small.close()


def test_several_threads_need_the_wall_clock(tmp_path):
    assert opened(tmp_path, intra_op_num_threads=2).clock == "wall clock"


def test_bound_inputs_and_outputs(tmp_path):
    """The path of the GPU providers, with the memory of the CPU."""
    session = open_session(model_file(tmp_path, 4), SETTINGS)
    engine = BoundSession(session, INPUTS, "cpu")
    np.testing.assert_array_equal(engine.outputs()["y"], INPUTS["x"])
    assert engine.clock == "wall clock, each call synchronised, no CUDA graph"
    assert engine.time(3) > 0
    engine.close()


def test_the_settings_are_used(tmp_path):
    changes = {
        "graph_optimization_level": "ORT_ENABLE_BASIC",
        "session_config": {"session.disable_quant_qdq": "1"},
        "intra_op_num_threads": 2,
        "inter_op_num_threads": 3,
    }
    optimized = tmp_path / "optimized.onnx"
    options = open_session(model_file(tmp_path, 4), {**SETTINGS, **changes}, optimized=optimized).get_session_options()
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 3)
    assert optimized.is_file()
    assert open_session(model_file(tmp_path, 4), SETTINGS, threads=2).get_session_options().intra_op_num_threads == 2


def test_a_file_that_is_no_model(tmp_path):
    with pytest.raises(BuildError, match="Protobuf parsing failed"):
        open_ort_engine(broken_candidate(tmp_path).model, SETTINGS, INPUTS, tmp_path)


@pytest.mark.parametrize(
    "inputs", [{}, {"z": INPUTS["x"]}, {"x": INPUTS["x"][:, :3]}, {"x": INPUTS["x"].astype(np.int64)}]
)
def test_inputs_that_do_not_fit_are_no_refusal_of_the_model(tmp_path, inputs):
    with pytest.raises(DeviceError, match=r"the model takes"):
        open_ort_engine(model_file(tmp_path, 4), SETTINGS, inputs, tmp_path)


def test_a_missing_provider_is_never_replaced(tmp_path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(
        DeviceError, match=r"built without CUDAExecutionProvider.*pip uninstall onnxruntime, then pip install"
    ):
        opened(tmp_path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_a_missing_setting_is_never_guessed(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "disabled_optimizers"}
    with pytest.raises(DeviceError, match="lack disabled_optimizers"):
        open_ort_engine(model_file(tmp_path, 4), settings, INPUTS, tmp_path)
