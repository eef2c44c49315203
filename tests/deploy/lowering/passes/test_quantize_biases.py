"""Integer biases of convolutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.quantize_biases import quantize_biases
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from deploy.lowering.passes.quantize_weights import quantize_weights
from tests.deploy.networks import constants, nodes, residual


def _lowered(exported, plan):
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    quantize_tensors(model, plan, exported.units)
    return model


def test_int32_in_units_of_input_step_times_weight_step(tmp_path):
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "ort-cpu")
    model = _lowered(exported, plan)
    calls = sum(len(unit.calls) for unit in exported.units if "conv" in unit.operator)
    calls += len(plan.gemms)
    assert quantize_biases(model, plan, exported.units) == calls
    save_model(model, tmp_path / "model.onnx")
    found = constants(tmp_path / "model.onnx")
    graph = nodes(tmp_path / "model.onnx")
    for unit in (unit for unit in exported.units if "conv" in unit.operator):
        scale = np.float32(plan.input_quantizer(unit, 0).scale) * plan.weights[unit.path].scale.numpy()
        assert found[f"{unit.path}/bias"].dtype == np.int32
        np.testing.assert_array_equal(found[f"{unit.path}/bias/scale"], scale)
        bias = exported.traced.state[unit.bias].numpy()
        assert np.all(np.abs(found[f"{unit.path}/bias"] * scale - bias) <= 0.51 * scale)
        assert not found[f"{unit.path}/bias/zero_point"].any()
        assert graph[unit.path].input[2] == f"{unit.path}/bias/DQ"


def test_each_call_has_the_bias_of_its_own_input():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "ort-cpu")
    model = _lowered(exported, plan)
    quantize_biases(model, plan, exported.units)
    by_name = {node.name: node for node in model.graph}
    assert by_name["twice"].inputs[2] is not by_name["twice#2"].inputs[2]


def test_float_layers_and_linear_layers_that_the_plan_does_not_name_are_left_alone():
    exported = residual()
    plan, _ = exported.plan(exported.formats("fp32", "fp32", "fp32", "fp32", "fp32", "fp32", "fp32", "w8a8"), "ort-cpu")
    assert quantize_biases(_lowered(exported, plan), plan, exported.units) == len(plan.gemms) > 0
    plan = replace(plan, gemms=frozenset())
    assert quantize_biases(_lowered(exported, plan), plan, exported.units) == 0
    plan, _ = exported.plan(exported.formats("w8a16"), "simulate")
    assert quantize_biases(_lowered(exported, plan), plan, exported.units) == 0


def test_a_bias_beyond_32_bits_stays_float():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8", "fp32"), "ort-cpu")
    weight = plan.weights["stem"]
    tiny = replace(weight, scale=weight.scale * 1e-9)
    plan = replace(plan, weights={"stem": tiny})
    assert quantize_biases(_lowered(exported, plan), plan, exported.units) == 0
