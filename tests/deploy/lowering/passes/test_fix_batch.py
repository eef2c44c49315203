"""A fixed batch: plain numbers everywhere, the same results, and nothing quantised is folded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calib.errors import UserError
from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.fix_batch import fix_batch
from deploy.lowering.passes.quantize_weights import quantize_weights
from tests.deploy.networks import nodes, residual, run_plain


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
