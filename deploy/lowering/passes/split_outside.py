"""Split what an integer product makes along an outer axis, where attention takes the parts as heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.passes.editing import constant, free_name, new_node, remove_unused_constants, unit_nodes
from smpq.quantized.plan import QuantPlan


def split_outside(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Take equal parts of the last axis from the first axis instead; returns the number of tensors that are taken apart
    so.

    TensorRT-RTX 1.7 moves the Split of queries, keys and values, or the Slices, into the product that makes them, where
    each part is then reshaped to heads. It has no integer kernel for what comes of that on SM86: the weights are turned
    to half first. So the parts become an axis of their own, which goes to the front and is indexed there:
    `[..., parts * size] -> [..., parts, size] -> [parts, ..., size]`. No number changes, the product has its integer
    kernel, and there are fewer kernels in all.

    Left alone: parts of other sizes, and parts that something else reads, such as those of a gated unit. Their products
    have integer kernels as they are. So is what float products make.
    """
    changed = 0
    for unit in units:
        if unit.path in plan.weights and plan.formats[unit.path].quantizes_activation:
            for node in unit_nodes(model, unit).values():
                changed += _taken_apart(model, _with_bias(node))
    remove_unused_constants(model)
    return changed


def _with_bias(product: ir.Node) -> ir.Node:
    readers = [use.node for use in product.outputs[0].uses()]
    return readers[0] if [node.op_type for node in readers] == ["Add"] else product


def _taken_apart(model: ir.Model, maker: ir.Node) -> bool:
    whole = maker.outputs[0]
    dimensions = list(whole.shape) if whole.shape is not None else []
    length = dimensions[-1] if dimensions else None
    if not isinstance(length, int):
        return False
    readers = list(dict.fromkeys(use.node for use in whole.uses()))
    parts = [part for node in readers for part in _parts(node, length)]
    if len({size for _, _, size in parts}) != 1 or len(parts) != sum(len(node.outputs) for node in readers):
        return False
    size = parts[0][2]
    if length % size or any(start % size or not _becomes_heads(part) for part, start, _ in parts):
        return False
    name, rank, dtype = str(readers[0].name), len(dimensions), whole.dtype or ir.DataType.FLOAT
    shape = constant(model, f"{name}/shape", np.array([*[0] * (rank - 1), length // size, size], np.int64))
    apart = new_node("Reshape", [whole, shape], free_name(model, f"{name}/apart"), dtype, None)
    outer = new_node("Transpose", [apart.outputs[0]], free_name(model, f"{name}/outer"), dtype, None)
    outer.attributes["perm"] = ir.AttrInt64s("perm", [rank - 1, *range(rank - 1), rank])
    found = []
    for number, (part, start, _) in enumerate(parts):
        index = constant(model, f"{name}/{number}/index", np.array(start // size, np.int64))
        taken = free_name(model, f"{name}/{number}")
        found.append(new_node("Gather", [outer.outputs[0], index], taken, dtype, part.shape, {"axis": 0}))
    ir.convenience.replace_nodes_and_values(
        model.graph,
        maker,
        readers,
        [apart, outer, *found],
        [part for part, _, _ in parts],
        [node.outputs[0] for node in found],
    )
    return True


def _parts(node: ir.Node, length: int) -> list[tuple[ir.Value, int, int]]:
    """Return the parts of the last axis that a node takes, each with its start and its size; none where it takes
    something else, or what it takes is not known.
    """
    whole = node.inputs[0]
    if whole is None or whole.shape is None:
        return []
    last, numbers = (-1, len(whole.shape) - 1), [_number(value) for value in node.inputs[1:]]
    if node.op_type == "Slice" and len(numbers) in (3, 4):
        start, end, axis, step = *numbers[:3], numbers[3] if len(numbers) > 3 else 1
        if start is None or end is None or axis not in last or step != 1:
            return []
        start, end, _ = slice(start, end).indices(length)
        return [(node.outputs[0], start, end - start)] if end > start else []
    if node.op_type != "Split" or node.attributes.get_int("axis", 0) not in last:
        return []
    count = len(node.outputs)
    sizes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if length % count or (len(node.inputs) > 1 and (sizes is None or (sizes.numpy() != length // count).any())):
        return []
    return [(part, number * length // count, length // count) for number, part in enumerate(node.outputs)]


def _number(value: ir.Value | None) -> int | None:
    known = value.const_value.numpy() if value is not None and value.const_value is not None else None
    return int(known.item()) if known is not None and known.size == 1 else None


def _becomes_heads(part: ir.Value) -> bool:
    return bool(part.uses()) and all(use.node.op_type == "Reshape" for use in part.uses())
