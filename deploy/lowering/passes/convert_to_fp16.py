"""Make half precision the float type of a model, as strongly typed builders want it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from calib.formats.format import FP32
from calib.network.units import Unit
from deploy.lowering.passes.editing import (
    Array,
    constant,
    free_name,
    gather_nodes,
    insert_after,
    new_node,
    remove_unused_constants,
    unit_nodes,
)
from smpq.quantized.plan import QuantPlan

_SMALLEST_SCALE = 2.0**-24
"""Smallest positive half: a scale of zero is refused, and what it multiplies is noise."""

_STAYS_FLOAT = {("Resize", 2), ("Upsample", 1)}
"""Inputs that ONNX defines as float32 whatever the data is: (operator, position)."""


def convert_to_fp16(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Convert float32 to float16 inside the model; returns the number of constants and casts changed or inserted.

    1. Inputs and outputs of the model stay float32, behind a Cast.
    2. Constants become half, clamped to its range (a mask of -3e38 must not become infinite times zero). Scales do too:
       the type of a DequantizeLinear's result is that of its scale, and a Cast there would stand between the runtime
       and its integer kernel.
    3. A unit planned fp32 keeps float32 weights between two Casts.
    4. Q/DQ pairs have one float type: what is quantised, its scale and what is dequantised are half. TensorRT 10.16
       builds no plan for SM87 where they differ (NVIDIA/TensorRT issue 4832).
    5. Left alone: integers, shapes, and inputs that ONNX wants as float32 (the sizes of Resize).
    """
    wide = [unit for unit in units if plan.formats[unit.path] == FP32]
    found = [node for unit in wide for node in (*unit_nodes(model, unit).values(), *gather_nodes(model, unit))]
    full = dict.fromkeys(found)  # in order, since casts are named as they are added
    changed = _convert_constants(model, full)
    for node in list(model.graph):
        if node in full:
            continue
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
            changed += 1
        if node.op_type == "ConstantOfShape":
            changed += _convert_fill(node)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in full:
        changed += _surround(model, node)
    changed += _cast_ends(model, full)
    remove_unused_constants(model)
    return changed


def _convert_constants(model: ir.Model, full: Container[ir.Node]) -> int:
    changed = 0
    for value in list(model.graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        uses = [use for use in value.uses() if use.node not in full and (use.node.op_type, use.idx) not in _STAYS_FLOAT]
        if not uses:
            continue
        scales = any(use.node.op_type in {"QuantizeLinear", "DequantizeLinear"} for use in uses)
        half = constant(model, f"{value.name}/half", _half(value.const_value.numpy(), scales=scales))
        for use in uses:
            use.node.replace_input_with(use.idx, half)
        changed += 1
    return changed


def _half(array: Array, *, scales: bool) -> Array:
    limit = float(np.finfo(np.float16).max)
    clamped = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    if scales:
        clamped = np.maximum(clamped, _SMALLEST_SCALE)
    return np.asarray(clamped, np.float16)


def _convert_fill(node: ir.Node) -> bool:
    fill = node.attributes.get("value")
    array = fill.as_tensor().numpy() if fill is not None else np.zeros(1, np.float32)
    if array.dtype != np.float32:
        return False
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_half(array, scales=False)))
    return True


def _surround(model: ir.Model, node: ir.Node) -> int:
    """Put a float32 node between casts."""
    casts = 0
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is not None or value.is_graph_input():
            continue
        if value.dtype is not None and value.dtype.is_integer():
            continue  # the rows that are looked up
        cast = new_node(
            "Cast",
            [value],
            free_name(model, f"{node.name}/Cast"),
            ir.DataType.FLOAT,
            value.shape,
            {"to": ir.DataType.FLOAT},
        )
        model.graph.insert_before(node, cast)
        node.replace_input_with(index, cast.outputs[0])
        casts += 1
    result = node.outputs[0]
    result.type = ir.TensorType(ir.DataType.FLOAT)
    readers = list(result.uses())  # the caller, if the result is an output, wants float32 too
    if readers:
        _cast_for(model, result, readers, ir.DataType.FLOAT16)
    return casts + bool(readers)


def _cast_ends(model: ir.Model, full: Container[ir.Node]) -> int:
    casts = 0
    for value in model.graph.inputs:
        uses = [use for use in value.uses() if use.node not in full]
        if value.dtype == ir.DataType.FLOAT and uses:
            _cast_for(model, value, uses, ir.DataType.FLOAT16)
            casts += 1
    for index, value in enumerate(model.graph.outputs):
        if value.dtype != ir.DataType.FLOAT16:
            continue
        name = str(value.name)
        value.name = free_name(model, f"{name}/half")
        cast = new_node(
            "Cast", [value], free_name(model, f"{name}/Cast"), ir.DataType.FLOAT, value.shape, {"to": ir.DataType.FLOAT}
        )
        cast.outputs[0].name = name
        insert_after(model, value, [cast])
        model.graph.outputs[index] = cast.outputs[0]
        casts += 1
    return casts


def _cast_for(model: ir.Model, value: ir.Value, uses: Sequence[Any], dtype: ir.DataType) -> None:
    cast = new_node("Cast", [value], free_name(model, f"{value.name}/Cast"), dtype, value.shape, {"to": dtype})
    insert_after(model, value, [cast])
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
