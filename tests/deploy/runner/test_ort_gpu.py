"""What ONNX Runtime's providers for GPUs are given besides the settings, and where they keep their engines. Nothing
here needs a GPU.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deploy.runner import ort_gpu
from deploy.runner.errors import DeviceError
from deploy.runner.ort import open_session
from deploy.runner.ort_gpu import about_the_machine, cache_places, provider_options, why_missing, with_kept_engine
from deploy.runner.ort_sessions import BoundSession, outputs_known
from tests.deploy.experiments import SETTINGS, WIDTH, model_file

TENSORRT = [["TensorrtExecutionProvider", {"trt_int8_enable": "True"}], "CUDAExecutionProvider"]


def test_options_of_this_machine(tmp_path):
    first, second = provider_options(TENSORRT, tmp_path / "engine", tmp_path / "timing", graph=True)
    assert first == (
        "TensorrtExecutionProvider",
        {
            "trt_int8_enable": "True",
            "trt_cuda_graph_enable": "True",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(tmp_path / "engine"),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(tmp_path / "timing"),
        },
    )
    assert second == "CUDAExecutionProvider", "one provider makes the graph"
    assert provider_options(["CUDAExecutionProvider"], graph=True) == [
        ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    ]
    assert provider_options(["CUDAExecutionProvider"]) == ["CUDAExecutionProvider"]
    assert TENSORRT[0][1] == {"trt_int8_enable": "True"}, "settings stay as they are"


def test_engines_of_other_weights_settings_and_machines_are_kept_apart(tmp_path, monkeypatch):
    model = model_file(tmp_path, 2)
    place, timing = cache_places(model, SETTINGS, tmp_path)
    assert cache_places(model, SETTINGS, tmp_path) == (place, timing)
    assert place.parent == timing.parent == tmp_path
    assert cache_places(model, {**SETTINGS, "providers": TENSORRT}, tmp_path)[0] != place
    found = onnx.load(str(model))
    found.graph.initializer[0].raw_data = bytes(
        len(found.graph.initializer[0].raw_data)
    )  # the same names, by which ONNX Runtime goes
    onnx.save(found, model)
    assert cache_places(model, SETTINGS, tmp_path)[0] != place
    assert cache_places(model, SETTINGS, tmp_path)[1] == timing
    monkeypatch.setattr(ort_gpu, "machine", lambda: "Orin (30W)")
    assert cache_places(model, SETTINGS, tmp_path)[1] != timing


def test_an_engine_that_was_not_written_to_its_end_is_made_again(tmp_path):
    place = tmp_path / "engine"
    place.mkdir()
    (place / "half.engine").touch()
    seen = with_kept_engine(place, lambda: [file.name for file in place.iterdir()])
    assert seen == []
    (place / "whole.engine").touch()
    assert "whole.engine" in with_kept_engine(place, lambda: [file.name for file in place.iterdir()])


def test_an_engine_that_no_longer_loads_is_made_again_once(tmp_path):
    place = tmp_path / "engine"
    with_kept_engine(place, (place / "old.engine").touch)

    def opened() -> str:
        if (place / "old.engine").is_file():
            raise RuntimeError("could not deserialize engine from cache")
        return "made again"

    assert with_kept_engine(place, opened) == "made again"

    def refused() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        with_kept_engine(tmp_path / "other", refused)
    assert not (tmp_path / "other").exists()


def test_what_is_wrong_with_the_machine_costs_no_engine(tmp_path):
    place = tmp_path / "engine"
    with_kept_engine(place, (place / "whole.engine").touch)

    def without_gpu() -> None:
        raise DeviceError("no GPU")

    with pytest.raises(DeviceError):
        with_kept_engine(place, without_gpu)
    assert (place / "whole.engine").is_file()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", "update its driver"),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", "nvidia-smi has to show it"),
        ("[TensorRT] The value for the key 'trt_int8_enable' should be 'True' or 'False'.", "refuses an option"),
        (
            "Conv node. cuDNN is unavailable or disabled for CUDA Execution Provider",
            r"pip install 'onnxruntime-gpu\[cuda,cudnn\]==",
        ),
    ],
)
def test_errors_about_the_machine(text, told):
    found = about_the_machine(RuntimeError(text), ["CPUExecutionProvider"])
    assert found is not None
    assert re.search(told, found)


def test_errors_about_the_model_are_not_of_the_machine():
    assert (
        about_the_machine(RuntimeError("TensorRT EP failed to create engine from network"), ["CPUExecutionProvider"])
        is None
    )


def test_a_build_for_the_cpu_says_what_to_install():
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    told = why_missing(["CUDAExecutionProvider"])
    assert "built without CUDAExecutionProvider" in told
    assert "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'" in told


def test_outputs_keep_their_address(tmp_path):
    """A graph writes to where its first run wrote; the memory of the CPU stands in."""
    session = open_session(model_file(tmp_path, 2), SETTINGS)
    engine = BoundSession(session, {"x": np.arange(WIDTH, dtype=np.float32)[None]}, "cpu", captured=True)
    assert engine.clock == "wall clock, each call synchronised, CUDA graph"
    address = engine._binding.get_outputs()[0].data_ptr()
    engine.run()
    assert engine._binding.get_outputs()[0].data_ptr() == address == engine._values["y"].data_ptr()
    for on, options in ((False, "-1"), (True, None)):
        engine.use_graph(on)
        assert engine.clock.endswith(", CUDA graph" if on else "no CUDA graph")
        assert (engine._options and engine._options.get_run_config_entry("gpu_graph_id")) == options
    np.testing.assert_array_equal(engine.outputs()["y"], np.arange(WIDTH, dtype=np.float32)[None])


@pytest.mark.parametrize(("size", "known"), [(3, True), ("batch", True), ("other", False)])
def test_shapes_of_outputs_follow_from_those_of_inputs(tmp_path, size, known):
    value = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"])
    outputs = [value("y", TensorProto.FLOAT, [size, 4])]
    graph = helper.make_graph([node], "g", [value("x", TensorProto.FLOAT, [3 if size == 3 else "batch", 4])], outputs)
    file = tmp_path / "free.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    session = open_session(file, SETTINGS)
    assert outputs_known(session, {"x": np.ones((3, 4), np.float32)}) is known
