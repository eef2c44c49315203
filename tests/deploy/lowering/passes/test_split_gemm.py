"""Gemm as MatMul and Add: which ones, the names, the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.split_gemm import split_gemm
from tests.deploy.networks import mlp, nodes, run_plain


def test_weight_only_layers_are_split_and_compute_the_same(tmp_path):
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w4a16b16", "w8a8", "fp32"), "ort-cpu")
    model = exported.model()
    assert split_gemm(model, plan, exported.units) == 1
    save_model(model, tmp_path / "model.onnx")
    graph = nodes(tmp_path / "model.onnx")
    first, second, third = (unit.path for unit in exported.units)
    assert (graph[first].op_type, graph[second].op_type, graph[third].op_type) == ("MatMul", "Gemm", "Gemm")
    assert graph[f"{first}/Add"].op_type == "Add"
    # the value behind keeps the name that the plan knows
    assert list(graph[f"{first}/Add"].output) == [exported.units[0].calls[0]]
    np.testing.assert_allclose(
        run_plain(tmp_path / "model.onnx", exported.batch), run_plain(exported.path, exported.batch), atol=1e-5
    )


def test_layers_with_integer_inputs_are_split_on_request_unless_their_bias_is_an_integer():
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w8a8", "w8a8", "fp32"), "ort-cpu")
    # behind the second one follow a ReLU and a float layer
    assert split_gemm(exported.model(), plan, exported.units, integer_inputs=True) == 1
    plan = replace(plan, gemms=frozenset())
    assert split_gemm(exported.model(), plan, exported.units) == 0
    assert split_gemm(exported.model(), plan, exported.units, integer_inputs=True) == 2


def test_a_gemm_that_scales_is_left_alone():
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w4a16b16"), "ort-cpu")
    model = exported.model()
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    gemm.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    assert split_gemm(model, plan, exported.units) == 2
