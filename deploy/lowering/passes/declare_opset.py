"""Declare the oldest operator set that a file needs."""

from __future__ import annotations

import onnx_ir as ir

_EXPORTED, _OLDER = 21, 20
_NEW_TYPES = {ir.DataType.INT4, ir.DataType.UINT4}


def declare_opset(model: ir.Model) -> bool:
    """Declare opset 20 in the place of 21 where nothing of 21 is used; returns whether the model was changed.

    1. What 21 adds to the operators that torch exports are 4-bit types, block scales and a GroupNormalization with a
       scale for each channel; the rest means the same in both. TensorRT before 10.8 documents opsets up to 20.
    2. Left alone: a model with one of these, and one of another opset.
    """
    if model.graph.opset_imports.get("") != _EXPORTED:
        return False
    values = [
        *model.graph.initializers.values(),
        *(value for node in model.graph.all_nodes() for value in node.outputs),
    ]
    blocks = any(node.attributes.get_int("block_size", 0) for node in model.graph.all_nodes())
    renewed = any(node.op_type == "GroupNormalization" for node in model.graph.all_nodes())
    if blocks or renewed or any(value.dtype in _NEW_TYPES for value in values):
        return False
    model.graph.opset_imports[""] = _OLDER
    return True
