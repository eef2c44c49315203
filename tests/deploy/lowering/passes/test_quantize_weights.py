"""Integer weights: layout, type, zero points, sharing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.editing import unit_nodes
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.lowering.passes.split_gemm import split_gemm
from tests.deploy.networks import constants, mlp, nodes, residual


def _attributes(node):
    return {attribute.name: attribute.i for attribute in node.attribute}


@pytest.mark.parametrize(
    ("text", "stored"), [("w8a8", np.int8), ("w5a8", np.int8), ("w4a8", ml_dtypes.int4), ("w2a8", ml_dtypes.int4)]
)
def test_integers_inside_their_range_in_the_next_wider_type(tmp_path, text, stored):
    exported = residual()
    plan, _ = exported.plan(exported.formats(text), "simulate")
    model = exported.model()
    assert quantize_weights(model, plan, exported.units) == len(exported.units)
    save_model(model, tmp_path / "model.onnx")
    found = constants(tmp_path / "model.onnx")
    for unit in exported.units:
        weight = plan.weights[unit.path]
        integers = found[f"{unit.path}/weight"]
        assert integers.dtype == stored
        reference = weight.values.numpy()
        assert np.array_equal(integers.astype(int), reference) or np.array_equal(integers.astype(int), reference.T)
        assert np.abs(integers.astype(int)).max() <= 2 ** (weight.bits - 1)
        assert not found[f"{unit.path}/weight/zero_point"].astype(int).any()
        assert found[f"{unit.path}/weight/zero_point"].dtype == stored
    assert not any(array.dtype == np.float32 and array.ndim == 4 for array in found.values()), (
        "a float weight is left in the file"
    )


def test_one_scale_for_each_output_channel_on_the_right_axis(tmp_path):
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "simulate")
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    save_model(model, tmp_path / "model.onnx")
    graph = nodes(tmp_path / "model.onnx")
    found = constants(tmp_path / "model.onnx")
    for unit in exported.units:
        axis = 1 if graph[unit.path].op_type == "MatMul" else 0
        assert _attributes(graph[f"{unit.path}/weight/DQ"]) == {"axis": axis}
        assert found[f"{unit.path}/weight/scale"].shape == (unit.out_features,)
        assert found[f"{unit.path}/weight"].shape[axis] == unit.out_features


def test_blocks_are_k_by_n_with_axis_0(tmp_path):
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w4a16b16"), "ort-cpu")
    model = exported.model()
    split_gemm(model, plan, exported.units)
    quantize_weights(model, plan, exported.units)
    save_model(model, tmp_path / "model.onnx")
    graph = nodes(tmp_path / "model.onnx")
    found = constants(tmp_path / "model.onnx")
    for unit in exported.units:
        assert graph[unit.path].op_type == "MatMul"
        assert _attributes(graph[f"{unit.path}/weight/DQ"]) == {"axis": 0, "block_size": 16}
        assert found[f"{unit.path}/weight"].shape == (unit.in_features, unit.out_features)
        assert found[f"{unit.path}/weight/scale"].shape == (unit.in_features // 16, unit.out_features)
        restored = found[f"{unit.path}/weight"].astype(np.float32) * found[f"{unit.path}/weight/scale"].repeat(
            16, axis=0
        )
        np.testing.assert_array_equal(restored.T, plan.weights[unit.path].dequantize().numpy())


def test_blocks_need_a_matmul():
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w4a16b16"), "ort-cpu")
    with pytest.raises(ValueError, match="need a MatMul"):
        quantize_weights(exported.model(), plan, exported.units)


def test_a_weight_used_twice_is_stored_once_or_for_each_call():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "simulate")
    twice = next(unit for unit in exported.units if unit.path == "twice")
    model = exported.model()
    assert quantize_weights(model, plan, exported.units) == len(exported.units)
    first, second = unit_nodes(model, twice).values()
    assert first.inputs[1] is second.inputs[1]
    model = exported.model()
    assert quantize_weights(model, plan, exported.units, copy_from_bits=8) == len(exported.units) + 1
    first, second = unit_nodes(model, twice).values()
    assert first.inputs[1] is not second.inputs[1]


def test_float_units_are_left_alone():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8", "fp32"), "simulate")
    model = exported.model()
    assert quantize_weights(model, plan, exported.units) == 1
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 1
