"""Clips that quantising makes needless are dropped, others stay; the numbers are the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.lowering.passes.drop_clips import drop_clips

VALUES = np.linspace(-3, 9, 4001, dtype=np.float32)


def _model(low, high, scale, zero_point, stored=np.uint8, *, read_twice=False):
    x = ir.Value(name="x", shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = {
        name: ir.Value(name=name, const_value=ir.tensor(np.array(number, dtype), name=name))
        for name, number, dtype in (
            ("low", low, np.float32), ("high", high, np.float32), ("scale", scale, np.float32),
            ("zero_point", zero_point, stored),
        )
    }  # fmt: skip
    clip = ir.node("Clip", [x, constants["low"], constants["high"]], name="clip")
    quantize = ir.node("QuantizeLinear", [clip.outputs[0], constants["scale"], constants["zero_point"]], name="q")
    back = ir.node("DequantizeLinear", [quantize.outputs[0], constants["scale"], constants["zero_point"]], name="dq")
    back.outputs[0].name = "y"
    back.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    back.outputs[0].shape = ir.Shape([None])
    outputs = [back.outputs[0]]
    if read_twice:
        clip.outputs[0].name, clip.outputs[0].type = "clipped", ir.TensorType(ir.DataType.FLOAT)
        clip.outputs[0].shape = ir.Shape([None])
        outputs.append(clip.outputs[0])
    graph = ir.Graph(
        [x], outputs, nodes=[clip, quantize, back], initializers=list(constants.values()), opset_imports={"": 21}
    )
    return ir.Model(graph, ir_version=10)


def _run(model):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"x": VALUES})[0]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0, 6, 6 / 255, 0), (0, 6, 4 / 255, 0), (-1, 1, 0.0078, 128), (-1, 1, 0.005, 128), (0, np.inf, 1.0, 0)],
)
def test_a_clip_at_the_ends_of_the_integers_changes_nothing(low, high, scale, zero_point):
    model = _model(low, high, scale, zero_point)
    before = _run(model)
    assert drop_clips(model) == 1
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(_run(model), before)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"), [(0, 6, 6.1 / 255, 0), (0, 6, 6 / 255, 3), (-1, 1, 0.01, 128)]
)
def test_a_clip_inside_of_them_stays(low, high, scale, zero_point):
    assert drop_clips(_model(low, high, scale, zero_point)) == 0


def test_a_clip_that_something_else_reads_stays():
    assert drop_clips(_model(0, 6, 6 / 255, 0, read_twice=True)) == 0
