"""What every pass does to a graph: add constants and nodes under readable names, and find the nodes of a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.naming import call_names, unique_name

Array = npt.NDArray[Any]

_TAKEN = "smpq.names"
"""Where a graph in memory keeps the set of its names: building it for each new constant would be quadratic."""


def unit_nodes(model: ir.Model, unit: Unit) -> dict[str, ir.Node]:
    """Return call -> the node that multiplies by the unit's weight; a call that the exporter merged into another is
    left out.
    """
    by_name = {node.name: node for node in model.graph if node.op_type in {"Conv", "Gemm", "MatMul"}}
    names = call_names(unit)
    return {call: by_name[names[call]] for call in unit.calls if names[call] in by_name}


def gather_nodes(model: ir.Model, unit: Unit) -> list[ir.Node]:
    """Return the nodes that look up rows of the unit's weight; those merged into another are left out."""
    names = call_names(unit)
    wanted = {names[use] for use in unit.gathers}
    return [node for node in model.graph if node.name in wanted and node.op_type == "Gather"]


def constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Add an initialiser, under a further name when `name` is taken, and return its value."""
    tensor = ir.tensor(array)
    name = free_name(model, name)
    tensor.name = name
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def scalar(model: ir.Model, name: str, number: float, dtype: npt.DTypeLike) -> ir.Value:
    """Add an initialiser of rank 0."""
    return constant(model, name, np.array(number, dtype))


def new_node(
    operator: str,
    inputs: list[ir.Value | None],
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    attributes: Mapping[str, int | float] | None = None,
) -> ir.Node:
    """Return a node with one output that carries the node's name; it is not in a graph yet."""
    output = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    return ir.node(operator, inputs, attributes, outputs=[output], name=name)


def insert_after(model: ir.Model, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Put nodes behind the one that makes `value`, or first where it is an input or a constant."""
    producer = value.producer()
    if producer is not None:
        model.graph.insert_after(producer, nodes)
    elif len(model.graph):
        model.graph.insert_before(model.graph.node(0), nodes)
    else:
        model.graph.extend(nodes)


def free_name(model: ir.Model, name: str) -> str:
    """Return `name`, or `name_2`, ... such that no value and no node has it; it is taken from then on."""
    taken: set[str] = model.graph.meta.get(_TAKEN) or _names(model)
    free = unique_name(name, taken)
    taken.add(free)
    model.graph.meta[_TAKEN] = taken
    return free


def remove_unused_constants(model: ir.Model) -> None:
    """Drop the initialisers that nothing reads any more."""
    outputs = set(map(id, model.graph.outputs))
    for name in [
        name for name, value in model.graph.initializers.items() if not value.uses() and id(value) not in outputs
    ]:
        del model.graph.initializers[name]


def _names(model: ir.Model) -> set[str]:
    graph = model.graph
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    return {str(named.name) for named in (*values, *graph)} | set(graph.initializers)
