"""Half precision inside, float32 outside, float32 units between casts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from deploy.backends import backend_of
from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.convert_to_fp16 import convert_to_fp16
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.targets.target import target_from_name
from tests.deploy.networks import export, nodes, relative_error, residual, run_plain


def _converted(path, *texts):
    exported = residual()
    plan, quantizer = exported.plan(exported.formats(*texts), "tensorrt-rtx")
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    quantize_tensors(model, plan, exported.units)
    assert convert_to_fp16(model, plan, exported.units) > 0
    save_model(model, path)
    return exported, exported.traced.run((exported.batch,), quantizer.edits(plan)).numpy()


@pytest.mark.parametrize("texts", [("fp16",), ("w8a8",), ("w8a8", "fp16", "w8a8", "fp32", "w8a8")])
def test_legal_typed_and_close_to_the_fake_quantised_model(tmp_path, texts):
    exported, expected = _converted(tmp_path / "model.onnx", *texts)
    result = run_plain(tmp_path / "model.onnx", exported.batch, disable_quant_qdq="1")
    assert result.dtype == np.float32
    assert relative_error(result, expected) < 0.02


def test_inputs_and_outputs_stay_float32_and_keep_their_names(tmp_path):
    exported, _ = _converted(tmp_path / "model.onnx", "w8a8")
    before, after = onnx.load(str(exported.path)).graph, onnx.load(str(tmp_path / "model.onnx")).graph
    for old, new in zip((*before.input, *before.output), (*after.input, *after.output), strict=True):
        assert old.name == new.name
        assert new.type.tensor_type.elem_type == TensorProto.FLOAT


def test_scales_are_half_so_that_dequantised_values_are(tmp_path):
    _converted(tmp_path / "model.onnx", "w8a8")
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    # a cast between a DequantizeLinear and the layer would keep TensorRT from seeing the pair
    cast = {name for node in graph.node if node.op_type == "Cast" for name in node.input}
    assert not cast & {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}


def test_a_unit_planned_fp32_keeps_float32_weights_between_casts(tmp_path):
    exported, _ = _converted(tmp_path / "model.onnx", "fp16", "fp32", "fp16")
    model = ir.load(tmp_path / "model.onnx")
    float32 = [value.name for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    assert len(float32) == 2
    unit = nodes(tmp_path / "model.onnx")[exported.units[1].path]
    assert set(unit.input[1:]) == set(float32)
    assert unit.input[0].endswith("/Cast")


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("Add", [-3e38, 1.0, -np.inf], [-65504, 1, -np.inf]),
        ("Max", [1e-12, -1e-30, 0.0], [2**-24, -(2**-24), 0]),
        ("MatMul", [1e-12, -1e-30, 1.0], [0, 0, 1]),
    ],
    ids=["a mask is clamped and infinity stays", "what is not zero stays so", "but for weights"],
)
def test_constants(operator, values, expected):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    mask = ir.Value(name="mask", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    mask.const_value = ir.tensor(np.array(values, np.float32), name="mask")
    graph.initializers["mask"] = mask
    x = ir.Value(name="x", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(x)
    node = ir.node(operator, [x, mask], name="node")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    exported = residual()
    plan, _ = exported.plan(exported.formats("fp16"), "tensorrt-rtx")
    convert_to_fp16(model, plan, ())
    np.testing.assert_array_equal(graph.initializers["mask/half"].const_value.numpy(), np.array(expected, np.float16))


def test_no_scale_becomes_zero():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "tensorrt-rtx")
    tiny = {path: replace(weight, scale=weight.scale * 1e-9) for path, weight in plan.weights.items()}
    plan = replace(plan, weights=tiny)
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    convert_to_fp16(model, plan, exported.units)
    assert model.graph.initializers["a/weight/scale/half"].const_value.numpy().min() > 0


class TwoResults(nn.Module):
    """A layer whose result is an output of the model and is read by others too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x)
        return h, self.c((torch.relu(self.b(h)) + h).mean((2, 3)))


@pytest.fixture(scope="module")
def two_results(tmp_path_factory):
    return export(TwoResults(), torch.randn(4, 3, 8, 8), tmp_path_factory.mktemp("two"))


def mixed_pairs(path) -> list[str]:
    """Q/DQ nodes whose scale has another type than the floats that go in or come out."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    }
    floats = {"QuantizeLinear": lambda node: node.input[0], "DequantizeLinear": lambda node: node.output[0]}
    pairs = [node for node in graph.node if node.op_type in floats]
    assert pairs
    return [
        node.name
        for node in pairs
        if {types[floats[node.op_type](node)], types[node.input[1]]} != {TensorProto.FLOAT16}
    ]


@pytest.mark.parametrize(
    "texts",
    [("w8a8",), ("fp32", "w8a8"), ("w8a8", "fp32", "w8a16"), ("fp32", "fp16", "w8a8"), ("fp32", "w8a16", "fp32")],
)
@pytest.mark.parametrize("network", ["residual", "two_results"])
def test_a_pair_has_one_float_type(tmp_path, request, network, texts):
    """TensorRT 10.16 refuses a DequantizeLinear of float32 with a scale of half on SM87 (NVIDIA/TensorRT issue
    4832).
    """
    exported = residual() if network == "residual" else request.getfixturevalue(network)
    plan, _ = exported.plan(exported.formats(*texts), "tensorrt")
    out = tmp_path / "model.onnx"
    backend_of(target_from_name("tensorrt")).lower(exported.path, plan, exported.units, out)
    assert mixed_pairs(out) == []
    if network == "two_results":
        assert [output.type.tensor_type.elem_type for output in onnx.load(out).graph.output] == [TensorProto.FLOAT] * 2
