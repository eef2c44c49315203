"""Store weights in their number types behind a DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx.helper import find_min_ir_version_for, make_opsetid

from calib.formats.number_type import Storage
from calib.formats.quantizers import QuantizedWeight
from calib.network.units import Unit
from deploy.lowering.export import OPSET
from deploy.lowering.passes.editing import Array, constant, free_name, new_node, remove_unused_constants, unit_nodes
from smpq.quantized.plan import QuantPlan


def quantize_weights(
    model: ir.Model,
    plan: QuantPlan,
    units: Sequence[Unit],
    newest_opset: int = OPSET,
    copy_from_bits: int | None = None,
) -> int:
    """Replace the float weight of every unit of the plan; returns the number of weights stored.

    1. The values are an initialiser `path/weight` behind a node `path/weight/DQ`, in the narrowest ONNX type of the
       number type (`NumberType.weight_storages`) that `newest_opset` has. The model's opset is raised where the type
       needs it.
    2. One scale for each output channel: axis 0 of Conv and Gemm with transB, axis 1 of MatMul and Gemm without (`[K,
       N]`).
    3. Block scales need MatMul: `[K, N]` values, axis 0, scale `[K / block, N]`. Anything else is a ValueError (a
       pass is missing).
    4. A scale that all channels share is a scalar, and so is its zero point.
    5. Zero points are written out, also where all are zero: runtimes misread a DequantizeLinear without one.
    6. A weight that several calls use is stored once and has one DequantizeLinear; except weights of `copy_from_bits`
       bits or more, which are stored for each call (see `deploy.lowering.lower`).
    7. Types that no ONNX type holds (`NumberType.as_floats`) are stored as the floats that they stand for.
    8. Units without an entry in `plan.weights` are left alone, even where the exporter gave them the same initialiser;
       so are those whose rows are looked up (`quantize_rows`).
    """
    changed = 0
    for unit in units:
        if unit.path not in plan.weights or unit.gathers:
            continue
        weight = plan.weights[unit.path]
        copies = copy_from_bits is not None and weight.bits >= copy_from_bits
        made: dict[bool, ir.Value] = {}
        for node in unit_nodes(model, unit).values():
            inputs_first = _inputs_first(node)
            if copies or inputs_first not in made:
                made[inputs_first] = _dequantized(model, node, unit, weight, newest_opset, inputs_first=inputs_first)
                changed += 1
            node.replace_input_with(1, made[inputs_first])
    remove_unused_constants(model)
    return changed


def _inputs_first(node: ir.Node) -> bool:
    """Whether the weight is stored as `[K, N]`, inputs before outputs."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))


def _dequantized(
    model: ir.Model, node: ir.Node, unit: Unit, weight: QuantizedWeight, newest_opset: int, *, inputs_first: bool
) -> ir.Value:
    if weight.type.as_floats:
        floats = weight.dequantize().detach().cpu().numpy()
        return constant(model, f"{unit.path}/weight", _contiguous(floats.T if inputs_first else floats))
    values = weight.value_array()
    scale, zero_points = weight.scale_array(), weight.zero_point_array()
    if weight.block is not None:
        if node.op_type != "MatMul" or values.shape[1] != weight.block * scale.shape[1]:
            raise ValueError(
                f"{unit.path}: blocks of {weight.block} need a MatMul whose inputs they divide, not {node.op_type}"
            )
        scale, zero_points = scale.T, zero_points.T
    if inputs_first:
        values = values.T
    axis = 1 if inputs_first and weight.block is None else 0
    dequantize = stored_weight(model, unit.path, weight, newest_opset, axis, (values, scale, zero_points))
    model.graph.insert_before(node, dequantize)
    return dequantize.outputs[0]


def stored_weight(
    model: ir.Model,
    path: str,
    weight: QuantizedWeight,
    newest_opset: int,
    axis: int,
    arrays: tuple[Array, Array, Array],
) -> ir.Node:
    """Add the integers of a unit, their steps and zero points (`arrays`), and return the DequantizeLinear that reads
    them, which is in no graph yet; its scales lie along `axis`.
    """
    values, scale, zero_points = arrays
    attributes = {"axis": axis} if weight.block is None else {"axis": axis, "block_size": weight.block}
    if weight.type.one_scale:
        attributes = {}
    storage = _narrowest(weight, newest_opset)
    if storage.least_opset > model.opset_imports[""]:
        model.opset_imports[""] = storage.least_opset
        oldest = find_min_ir_version_for([make_opsetid("", storage.least_opset)])
        model.ir_version = max(model.ir_version, oldest)
    stored = ir.DataType[storage.onnx_type].numpy()
    value = constant(model, f"{path}/weight", _contiguous(values).astype(stored))
    scales = constant(model, f"{value.name}/scale", _contiguous(scale))
    zeros = constant(model, f"{value.name}/zero_point", _contiguous(zero_points).astype(stored))
    return new_node(
        "DequantizeLinear",
        [value, scales, zeros],
        free_name(model, f"{value.name}/DQ"),
        ir.DataType.FLOAT,
        ir.Shape(values.shape),
        attributes,
    )


def _narrowest(weight: QuantizedWeight, newest_opset: int) -> Storage:
    """Return the first type that the opset has; the last one, which every exported model has, where it is newer."""
    storages = weight.type.weight_storages
    return next((found for found in storages if found.least_opset <= newest_opset), storages[-1])


def _contiguous(array: Array) -> Array:
    return np.asarray(array.copy(order="C"))  # np.ascontiguousarray makes a vector of a scalar
