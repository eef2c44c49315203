"""A fixed batch: plain numbers everywhere, the same results, and nothing quantised is folded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from calib.errors import UserError
from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.fix_batch import fix_batch
from deploy.lowering.passes.quantize_weights import quantize_weights
from tests.deploy.networks import export, nodes, residual, run_plain


def test_shapes_are_numbers_and_shape_arithmetic_is_gone(tmp_path):
    exported = residual()
    model = exported.model()
    assert fix_batch(model, 3) == 1
    save_model(model, tmp_path / "model.onnx")
    assert list(model.graph.inputs[0].shape) == [3, 3, 8, 8]
    assert all(isinstance(size, int) for value in model.graph.outputs for size in value.shape)
    assert not {node.op_type for node in nodes(tmp_path / "model.onnx").values()} & {"Shape", "Gather", "Concat"}
    expected = run_plain(exported.path, exported.batch[:3])
    np.testing.assert_allclose(run_plain(tmp_path / "model.onnx", exported.batch[:3]), expected, atol=1e-5)
    assert {unit.path for unit in exported.units} <= set(nodes(tmp_path / "model.onnx"))


def test_quantised_weights_are_not_folded():
    exported = residual()
    plan, _ = exported.plan(exported.formats("w4a8"), "simulate")
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    fix_batch(model, 1)
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == len(exported.units)


def test_a_model_traced_with_one_batch_size_refuses_another():
    model = residual().model()
    model.graph.inputs[0].shape = ir.Shape([2, 3, 8, 8])
    assert fix_batch(model, 2) == 0
    with pytest.raises(UserError, match="batches of 2"):
        fix_batch(model, 1)


def test_shapes_that_onnx_does_not_infer_are_kept(tmp_path):
    """There is no inference for GroupNormalization."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(0, 1))
    exported = export(network, torch.randn(4, 3, 8, 8), tmp_path)
    model = exported.model()
    assert fix_batch(model, 2) == 1
    save_model(model, tmp_path / "fixed.onnx")
    by_operator = {node.op_type: node.outputs[0].shape for node in model.graph}
    assert list(by_operator["GroupNormalization"]) == [2, 8, 6, 6]
    assert list(by_operator["Conv"]) == [2, 4, 4, 4]
    np.testing.assert_allclose(
        run_plain(tmp_path / "fixed.onnx", exported.batch[:2]), run_plain(exported.path, exported.batch[:2]), atol=1e-5
    )
