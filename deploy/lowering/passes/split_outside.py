"""Split what an integer product makes along an outer axis, where attention takes the parts as heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.passes.editing import constant, free_name, new_node, remove_unused_constants, unit_nodes
from smpq.quantized.plan import QuantPlan


def split_outside(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Turn a Split of the last axis into equal parts into one of the first axis; returns the number of Splits turned.

    TensorRT-RTX 1.7 moves a Split of queries, keys and values into the product that makes them, where each part is then
    reshaped to heads. It has no integer kernel for what comes of that on SM86: the weights are turned to half first. So
    the parts become an axis of their own, which goes to the front and is indexed there:
    `[..., parts * size] -> [..., parts, size] -> [parts, ..., size]`. No number changes, the product has its integer
    kernel, and there are fewer kernels in all.

    Left alone: parts of other sizes, and parts that something else reads, such as those of a gated unit. Their products
    have integer kernels as they are. So is what float products make.
    """
    changed = 0
    for unit in units:
        if unit.path in plan.weights and plan.formats[unit.path].quantizes_activation:
            for node in unit_nodes(model, unit).values():
                changed += sum(_turned(model, reader) for reader in _readers(node))
    remove_unused_constants(model)
    return changed


def _readers(product: ir.Node) -> list[ir.Node]:
    """Return what reads a product, behind the bias that is added to it."""
    readers = [use.node for use in product.outputs[0].uses()]
    if len(readers) == 1 and readers[0].op_type == "Add":
        return [use.node for use in readers[0].outputs[0].uses()]
    return readers


def _turned(model: ir.Model, split: ir.Node) -> bool:
    whole, count = split.inputs[0] if split.op_type == "Split" else None, len(split.outputs)
    shape = whole.shape if whole is not None else None
    if whole is None or shape is None or split.attributes.get_int("axis", 0) not in (-1, len(shape) - 1):
        return False
    length, sizes = shape[-1], split.inputs[1] if len(split.inputs) > 1 else None
    if not isinstance(length, int) or length % count or not all(map(_becomes_heads, split.outputs)):
        return False
    if sizes is not None and (sizes.const_value is None or (sizes.const_value.numpy() != length // count).any()):
        return False
    name, rank, dtype = str(split.name), len(shape), whole.dtype or ir.DataType.FLOAT
    parts = constant(model, f"{name}/shape", np.array([*[0] * (rank - 1), count, length // count], np.int64))
    apart = new_node("Reshape", [whole, parts], free_name(model, f"{name}/apart"), dtype, None)
    outer = new_node("Transpose", [apart.outputs[0]], free_name(model, f"{name}/outer"), dtype, None)
    outer.attributes["perm"] = ir.AttrInt64s("perm", [rank - 1, *range(rank - 1), rank])
    found = []
    for number, part in enumerate(split.outputs):
        index = constant(model, f"{name}/{number}/index", np.array(number, np.int64))
        taken = free_name(model, f"{name}/{number}")
        found.append(new_node("Gather", [outer.outputs[0], index], taken, dtype, part.shape, {"axis": 0}))
    results = [node.outputs[0] for node in found]
    nodes = [apart, outer, *found]
    ir.convenience.replace_nodes_and_values(model.graph, split, [split], nodes, list(split.outputs), results)
    return True


def _becomes_heads(part: ir.Value) -> bool:
    return bool(part.uses()) and all(use.node.op_type == "Reshape" for use in part.uses())
