"""Let layers with blocks of integer weights multiply the rows of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.passes.editing import constant, free_name, insert_after, new_node, unit_nodes
from smpq.quantized.plan import QuantPlan


def multiply_rows(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Reshape the input of a MatMul to `[rows, K]` and its result back; returns the number of nodes changed.

    1. Units with block scales and an input of three or more dimensions. Behind fused attention TensorRT-RTX 1.7 takes
       the dequantised weight out of the kernel that multiplies, and turns it into floats on every run; not so with an
       input of two dimensions.
    2. The result keeps its name. At most the first dimension may be free.
    3. Left alone: a result with another free dimension, or without a known shape.
    """
    changed = 0
    for unit in units:
        if unit.path in plan.weights and plan.weights[unit.path].block is not None:
            for node in unit_nodes(model, unit).values():
                changed += _flatten(model, node)
    return changed


def _flatten(model: ir.Model, node: ir.Node) -> bool:
    data, weight, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if data is None or data.dtype is None or weight is None or weight.shape is None or result.shape is None:
        return False
    inner = weight.shape[0]
    sizes = list(result.shape)
    if len(sizes) < 3 or not all(isinstance(size, int) for size in sizes[1:]):
        return False
    before = constant(model, f"{node.name}/rows/shape", np.array([-1, inner], np.int64))
    after = constant(model, f"{node.name}/shape", np.array([-1, *sizes[1:]], np.int64))
    flatten = new_node(
        "Reshape", [data, before], free_name(model, f"{node.name}/rows"), data.dtype, ir.Shape([None, inner])
    )
    model.graph.insert_before(node, flatten)
    node.replace_input_with(0, flatten.outputs[0])
    _unflatten(model, node, result, after)
    return True


def _unflatten(model: ir.Model, node: ir.Node, result: ir.Value, shape: ir.Value) -> None:
    """Put a Reshape behind `result` that takes its name and its readers."""
    name, readers = str(result.name), list(result.uses())
    unflatten = new_node(
        "Reshape",
        [result, shape],
        free_name(model, f"{node.name}/Reshape"),
        result.dtype or ir.DataType.FLOAT,
        result.shape,
    )
    insert_after(model, result, [unflatten])
    for use in readers:
        use.node.replace_input_with(use.idx, unflatten.outputs[0])
    for index, output in enumerate(model.graph.outputs):
        if output is result:
            model.graph.outputs[index] = unflatten.outputs[0]
    result.shape = ir.Shape([None, list(result.shape or ())[-1]])
    result.name = free_name(model, f"{name}/rows")
    unflatten.outputs[0].name = name
