"""Which tensor of the traced graph each value of torch's ONNX exporter is."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from calib.network.graph import TracedModel
from calib.network.nodes import are_alike, operator_name

_MAY_BE_IDENTITY = {
    "alias", "clone", "contiguous", "detach", "dropout", "expand", "_to_copy", "to", "pad", "constant_pad_nd",
    "permute", "reshape",
    "slice", "transpose", "view", "_unsafe_view", "lift_fresh_copy", "unflatten",
}  # fmt: skip


class TracedNames:
    """Which tensor of the traced graph each node of the exporter's own graph computes.

    The exporter decomposes the program once more, into a copy whose counters start again: `add_30` may become `add_2`
    there. Each copied node carries the chain of nodes it came from, with the identity of their graphs; the one in our
    graph decides.
    """

    def __init__(self, traced: TracedModel, exported: fx.Graph) -> None:
        self._traced = traced
        self._exported = exported
        self._origin = {node.name: self._find_origin(node) for node in exported.nodes}
        self._computed_by: dict[str, fx.Node] = {}
        for node in exported.nodes:
            tensor = self._origin[node.name]
            if tensor is not None and isinstance(node.meta.get("val"), torch.Tensor) and self._leaves(node, tensor):
                self._computed_by[tensor] = node

    def traced_name(self, exporter_name: str | None) -> str | None:
        """Return the traced node that a node of the exporter's graph belongs to."""
        return self._origin.get(exporter_name) if exporter_name is not None else None

    def resolve(self, produced: set[str]) -> dict[str, str]:
        """Return traced tensor -> name of the ONNX value, before renaming; tensors without one are left out."""
        values: dict[str, str] = {}
        seen: dict[str, str] = {}
        for node in self._exported.nodes:
            if node.op == "placeholder":
                values[node.name] = node.name
            if node.op != "call_function":
                continue
            arguments = fx.node.map_arg(
                (node.args, node.kwargs), lambda argument: values.get(argument.name, argument.name)
            )
            computation = f"{node.target} {arguments}"
            source = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
            if node.name in produced:
                values[node.name] = node.name
            elif computation in seen:
                values[node.name] = seen[computation]
            elif (
                source is not None
                and source.name in values
                and operator_name(node) in _MAY_BE_IDENTITY
                and are_alike(node, source)
            ):
                values[node.name] = values[source.name]
            if node.name in values:
                seen.setdefault(computation, values[node.name])
        computed = {tensor: values[node.name] for tensor, node in self._computed_by.items() if node.name in values}
        return {name: name for name in self._traced.inputs} | computed

    def final_names(self, resolved: Mapping[str, str]) -> dict[str, str]:
        """Return traced tensor -> name of the ONNX value after renaming: the first tensor of a value names it."""
        first: dict[str, str] = {}
        for tensor, value in self._in_order(resolved):
            first.setdefault(value, tensor)
        return {tensor: first[value] for tensor, value in resolved.items()}

    def _in_order(self, resolved: Mapping[str, str]) -> list[tuple[str, str]]:
        return [(name, resolved[name]) for name in self._traced.nodes if name in resolved]

    def _find_origin(self, node: fx.Node) -> str | None:
        pending = list(node.meta.get("from_node") or [])
        while pending:
            source = pending.pop(0)
            if source.graph_id == id(self._traced.graph) and source.name in self._traced.nodes:
                found = self._traced.nodes[source.name]
                if found.op == "placeholder" or node.op != "call_function":
                    return None
                return self._one_result(node, found)
            pending += list(source.from_node or [])
        return None

    def _one_result(self, node: fx.Node, found: fx.Node) -> str:
        """Where the traced node has several results, the traced node that takes the one this node takes."""
        if isinstance(found.meta.get("val"), (tuple, list)) and node.target is operator.getitem:
            for user in found.users:
                if user.target is operator.getitem and user.args[1] == node.args[1]:
                    return user.name
        return found.name

    def _leaves(self, node: fx.Node, tensor: str) -> bool:
        """Whether the node's value is read outside of the traced node's own decomposition, and looks like its
        tensor.
        """
        value = self._traced.nodes[tensor].meta.get("val")
        if (
            not isinstance(value, torch.Tensor)
            or value.dim() != node.meta["val"].dim()
            or value.dtype != node.meta["val"].dtype
        ):
            return False
        return not node.users or any(self._origin_of_user(user) != tensor for user in node.users)

    def _origin_of_user(self, user: fx.Node) -> str | None:
        return self._origin.get(user.name) or self._find_origin(user)
