"""onnxruntime's own `quantize_static`, as the curve has it beside the plans of a search."""

from __future__ import annotations

import io
import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.backends import backend_of
from deploy.backends.base import BuildFailed
from deploy.targets.target import target_from_name


@pytest.fixture
def float_model(tmp_path):
    """A convolution with two output channels of very different size."""
    weight = np.stack([np.full((3, 3, 3), 0.01, np.float32), np.full((3, 3, 3), 5.0, np.float32)])
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = tmp_path / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def batches(count: int = 2) -> list[dict]:
    generator = np.random.default_rng(0)
    return [{"x": generator.normal(size=(4, 3, 4, 4)).astype(np.float32)} for _ in range(count)]


def test_it_has_a_scale_for_each_channel_and_opens_in_a_session_by_default(float_model, tmp_path):
    backend, out = backend_of(target_from_name("ort-cpu")), tmp_path / "static.onnx"
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.root.addHandler(handler)
    try:
        settings = backend.quantize_itself(float_model, out, batches())
    finally:
        logging.root.removeHandler(handler)
    assert heard.getvalue() == "", "its advice is not for whoever looks at a curve"
    assert logging.root.manager.disable == 0
    graph = onnx.load(out).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    scales = [
        numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name.startswith("w_") and "scale" in tensor.name
    ]
    assert [scale.shape for scale in scales] == [(2,)]
    assert (settings["disabled_optimizers"], settings["session_config"]) == ([], {})
    opened = backend.open_lowered(out, settings, ["x"], 1, 1, tmp_path)
    plain = backend.open_lowered(float_model, settings, ["x"], 1, 1, tmp_path)
    assert opened.batch is None
    (inputs,) = (list(feeds.values()) for feeds in batches(1))
    found, expected = opened.run(inputs)[0], plain.run(inputs)[0]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_it_cannot_do_is_a_reason(tmp_path):
    backend = backend_of(target_from_name("ort-cpu"))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert isinstance(backend.quantize_itself(tmp_path / "broken.onnx", tmp_path / "out.onnx", batches()), BuildFailed)


def test_other_runtimes_have_none(float_model, tmp_path):
    backend = backend_of(target_from_name("tensorrt", look=False))
    assert backend.quantize_itself(float_model, tmp_path / "out.onnx", batches()) is None
