"""ONNX Runtime on an NVIDIA GPU: what its providers are given. Nothing here needs the GPU."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from calib.errors import UserError
from calib.files.storage import plain, record_from_text
from deploy.backends.onnxruntime import OrtEngineRecord, build_engine, load_engine, session_settings
from deploy.runner.ort import open_session
from deploy.targets.target import target_from_name
from tests.deploy.networks import constants, mlp, nodes, quantisers, relative_error, residual


@pytest.mark.parametrize("target", ["ort-cuda", "ort-tensorrt"])
def test_without_its_provider_the_message_says_what_to_install(target, tmp_path):
    providers = target_from_name(target).providers
    if providers[0] in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {providers[0]}")
    exported = mlp()
    lowered = exported.lower(exported.formats("fp16"), target, tmp_path)
    with pytest.raises(UserError, match=rf"without {providers[0]}.*smpq\[gpu\]"):
        build_engine(lowered.path, tmp_path / "engine.onnx", providers=providers)
    assert not (tmp_path / "engine.onnx").exists()


def test_tensorrt_gets_its_options_and_no_optimiser_before_it(tmp_path):
    exported = residual()
    target = target_from_name("ort-tensorrt")
    lowered = exported.lower(exported.formats("w8a8"), "ort-tensorrt", tmp_path)
    settings = session_settings(lowered.path, target.providers)
    options = {"trt_fp16_enable": "True", "trt_int8_enable": "True"}
    assert [list(each) if isinstance(each, tuple) else each for each in settings["providers"]] == [
        ["TensorrtExecutionProvider", options],
        "CUDAExecutionProvider",
    ]
    assert settings["graph_optimization_level"] == "ORT_DISABLE_ALL"
    assert settings["session_config"] == {}


@pytest.mark.parametrize("network", [mlp, residual])
def test_integer_weights_and_qdq_nodes_reach_the_providers_as_they_were_lowered(network, tmp_path):
    """ONNX Runtime's optimisers are the same in its build for the CPU, where the graph that a provider gets can be
    written to a file.
    """
    exported = network()
    lowered = exported.lower(exported.formats("w8a8"), "ort-tensorrt", tmp_path)
    settings = session_settings(lowered.path, target_from_name("ort-tensorrt").providers)
    given = tmp_path / "given.onnx"
    open_session(lowered.path, settings, providers=["CPUExecutionProvider"], optimized=given)
    before, after = constants(lowered.path), constants(given)
    weights = {name for name, array in before.items() if array.dtype == np.int8 and array.ndim > 1}
    assert len(weights) == len(exported.units)
    assert all(after[name].dtype == np.int8 for name in weights)
    assert not [name for name, array in after.items() if array.ndim > 1 and name not in weights]
    assert quantisers(given) == quantisers(lowered.path)


def test_cuda_gets_no_settings_of_the_cpu(tmp_path):
    exported = mlp()
    lowered = exported.lower(exported.formats("w4a16b16"), "ort-cuda", tmp_path)
    settings = session_settings(lowered.path, target_from_name("ort-cuda").providers)
    assert settings["providers"] == ["CUDAExecutionProvider"]
    assert settings["session_config"] == {}
    assert settings["disabled_optimizers"] == ["MatMulAddFusion"]
    assert session_settings(lowered.path)["session_config"] == {"session.qdq_matmulnbits_accuracy_level": "4"}


def test_a_record_with_options_round_trips(tmp_path):
    exported = mlp()
    record = build_engine(exported.lower(exported.formats("fp32"), "ort-cpu", tmp_path).path, tmp_path / "engine.onnx")
    assert isinstance(record, OrtEngineRecord)
    data = {
        **plain(record),
        "providers": [["TensorrtExecutionProvider", {"trt_int8_enable": "True"}], "CPUExecutionProvider"],
    }
    assert plain(record_from_text(json.dumps(data), OrtEngineRecord, "engine.json", "")) == data


@pytest.mark.parametrize("texts", [("w4a16b16",), ("w8a16b16", "fp16", "w4a16b16"), ("fp16",)])
def test_cuda_gets_blocks_in_half_precision_and_a_free_batch(texts, tmp_path):
    """The file computes what was planned; the CPU stands in for the GPU."""
    exported = mlp()
    lowered = exported.lower(exported.formats(*texts), "ort-cuda", tmp_path)
    found, graph = constants(lowered.path), nodes(lowered.path)
    scales = {found[node.input[1]].dtype for node in graph.values() if node.op_type == "DequantizeLinear"}
    assert scales <= {np.dtype(np.float16)}
    assert not any(array.dtype == np.float32 and array.size > 1 for array in found.values())
    engine = tmp_path / "reference.onnx"
    build_engine(lowered.path, engine, exact=True)
    loaded = load_engine(engine)
    for count in (1, 64):
        (result,) = loaded.run((exported.batch[:count].numpy(),))
        assert relative_error(result, lowered.expected[:count]) < 0.01


def test_the_tensorrt_provider_gets_what_tensorrt_gets(tmp_path):
    exported = residual()
    ours, theirs = (
        exported.lower(exported.formats("w8a8", "fp16"), name, tmp_path) for name in ("ort-tensorrt", "tensorrt")
    )
    assert ours.path.read_bytes() == theirs.path.read_bytes()
