"""Give a model with a dynamic batch one batch size."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript import optimizer

from calib.errors import UserError


def fix_batch(model: ir.Model, batch: int) -> int:
    """Set the leading dimension of every input to `batch`; returns the number of inputs changed.

    1. A symbolic leading dimension becomes `batch`; shapes are inferred again and what only computes shapes is folded,
       so that a builder without optimisation profiles sees plain numbers. A shape that ONNX does not infer, as behind a
       GroupNormalization, is the one that was there, with the batch in it.
    2. An input with another number as its leading dimension is a UserError: the model was traced with that batch size
       only.
    3. Left alone: inputs without dimensions, and quantised constants (DequantizeLinear is never folded).
    """
    changed, names = 0, set[str | None]()
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
        names.add(size.value)
        value.shape = ir.Shape([batch, *list(value.shape)[1:]])
        changed += 1
    if changed:
        before = {value: value.shape for node in model.graph.all_nodes() for value in node.outputs}
        for value in before:
            value.shape = None
        ShapeInferencePass()(model)
        for value, shape in before.items():
            if value.shape is None and shape is not None:
                value.shape = ir.Shape([_fixed(size, names, batch) for size in shape])
        optimizer.fold_constants(model, onnx_shape_inference=True)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
        ShapeInferencePass()(model)
    return changed


def _fixed(size: int | ir.SymbolicDim, names: Container[str | None], batch: int) -> int | ir.SymbolicDim:
    """Return a size with the batch in it; what is computed from symbols is not known."""
    if isinstance(size, int):
        return size
    if size.value in names:
        return batch
    return size if size.value is not None and size.value.isidentifier() else ir.SymbolicDim(None)
