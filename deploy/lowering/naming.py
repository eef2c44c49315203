"""Names of nodes and values in an ONNX model, by the module paths and tensors of the traced graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import onnx_ir as ir

from calib.network.graph import TracedModel
from calib.network.nodes import module_path
from calib.network.units import Unit


def call_names(unit: Unit) -> dict[str, str]:
    """Return the name of the ONNX node of each use of the unit, by the use's node in the traced graph."""
    return {use: unit.path if index == 0 else f"{unit.path}#{index + 1}" for index, use in enumerate(unit.uses)}


def name_values(model: ir.Model, traced: TracedModel, resolved: Mapping[str, str]) -> None:
    """Give every value the name of its tensor in the traced graph.

    1. Values are renamed in two steps: the exporter's `add_2` may be our `add_30`, while another tensor of ours is
       called `add_2`.
    2. A constant that the exporter has worked out and called as a tensor of ours gets another name.
    3. Inputs keep the names of the trace. The exporter calls an input that is an output as well `x_orig`.
    """
    wanted: dict[str, str] = {}
    for tensor, value_name in resolved.items():
        wanted.setdefault(value_name, tensor)
    wanted |= {str(value.name): name for value, name in zip(model.graph.inputs, traced.inputs, strict=True)}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    old_names = [str(value.name) for value in values]
    for index, value in enumerate(values):
        value.name = f"__renamed_{index}"
    taken = {wanted[old] for old in old_names if old in wanted}
    _free_names(model.graph, taken)
    taken |= set(model.graph.initializers)
    named: set[str] = set()
    for value, old in zip(values, old_names, strict=True):
        ours = wanted.get(old)
        value.name = ours if ours is not None and ours not in named else unique_name(old, taken)
        named.add(str(value.name))
        taken.add(str(value.name))


def _free_names(graph: ir.Graph, names: Collection[str]) -> None:
    """Give the constants that have one of these names others."""
    taken = {*names, *graph.initializers}
    for name in [name for name in graph.initializers if name in names]:
        constant = graph.initializers.pop(name)
        constant.name = unique_name(name, taken)
        taken.add(constant.name)
        graph.register_initializer(constant)


def name_nodes(
    model: ir.Model,
    traced: TracedModel,
    units_by_node: Mapping[ir.Node, str],
    traced_names: Mapping[ir.Node, str | None],
) -> None:
    """Name the nodes of units by their units, and other nodes `<module path>/<operator>`, made unique."""
    taken = set(units_by_node.values())
    for node in model.graph:
        if node in units_by_node:
            node.name = units_by_node[node]
            continue
        tensor = traced_names[node]
        path = module_path(traced.nodes[tensor]) if tensor is not None else ""
        node.name = unique_name(f"{path}/{node.op_type}" if path else node.op_type, taken)
        taken.add(node.name)


def unique_name(name: str, taken: set[str]) -> str:
    """Return `name`, or `name_2`, `name_3`, ... when it is taken."""
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def name_axes(model: ir.Model) -> None:
    """Call the free sizes of the inputs `batch` where they are in front, else `<input>_<axis>`, wherever they
    appear.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value and size.value not in names:
                names[size.value] = unique_name(f"{value.name}_{axis}" if axis else "batch", taken)
                taken.add(names[size.value])
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    ir.SymbolicDim(pattern.sub(lambda match: names[match[0]], size.value))
                    if isinstance(size, ir.SymbolicDim) and size.value
                    else size
                    for size in value.shape
                ]
            )
