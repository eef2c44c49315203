"""Give a model with a dynamic batch one batch size."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript import optimizer

from calib.errors import UserError


def fix_batch(model: ir.Model, batch: int) -> int:
    """Set the leading dimension of every input to `batch`; returns the number of inputs changed.

    1. A symbolic leading dimension becomes `batch`; shapes are inferred again and what only computes shapes is folded,
       so that a builder without optimisation profiles sees plain numbers.
    2. An input with another number as its leading dimension is a UserError: the model was traced with that batch size
       only.
    3. Left alone: inputs without dimensions, and quantised constants (DequantizeLinear is never folded).
    """
    changed = 0
    for value in model.graph.inputs:
        if value.shape is None or not len(value.shape):
            continue
        size = value.shape[0]
        if isinstance(size, int):
            if size != batch:
                raise UserError(
                    f"the model only runs with batches of {size} (it does not trace with a dynamic batch), not {batch}"
                )
            continue
        value.shape = ir.Shape([batch, *list(value.shape)[1:]])
        changed += 1
    if changed:
        for node in model.graph.all_nodes():
            for value in node.outputs:
                value.shape = None
        ShapeInferencePass()(model)
        optimizer.fold_constants(model, onnx_shape_inference=True)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
        ShapeInferencePass()(model)
    return changed
