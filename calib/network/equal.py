"""Make one node of nodes that compute the same: the exporter does so too, and a plan has to name what the engine will
hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from calib.network.nodes import OPERATOR, are_alike, operator_name

_COPIES = {
    "clone", "contiguous", "alias", "detach", "lift_fresh_copy", "view", "_unsafe_view", "reshape", "expand", "to",
    "_to_copy",
}  # fmt: skip
"""Operators that give back what they are given when type and shape are the same."""


def merge_equal(program: ExportedProgram) -> int:
    """Merge nodes with the same operator and equal arguments, in place; returns how many went.

    1. A layer called twice on one tensor becomes one call, and so does whatever equal follows both.
    2. Copies that change neither type nor shape count as what they copy when arguments are compared; they stay in the
       graph.
    3. Left alone: operators that draw random numbers or change their arguments, and what does not give one tensor or
       several.
    """
    graph = program.graph
    first: dict[Any, fx.Node] = {}
    same_as: dict[fx.Node, fx.Node] = {}
    merged: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _repeatable(node):
            continue
        key = (node.target, *(_hashable(part, same_as) for part in (node.args, node.kwargs)))
        kept = first.setdefault(key, node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph.erase_node(node)
            merged[node.name] = kept.name
        elif operator_name(node) in _COPIES and are_alike(node, node.all_input_nodes[0]):
            source = node.all_input_nodes[0]
            same_as[node] = same_as.get(source, source)
    for output in program.graph_signature.output_specs:
        name = getattr(output.arg, "name", None)
        if name in merged:
            output.arg.name = merged[name]
    return len(merged)


def _repeatable(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, OPERATOR):
        return getattr(target, "__name__", "") == "getitem"
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable  # noqa: SLF001


def _hashable(argument: Any, same_as: dict[fx.Node, fx.Node]) -> Any:
    """Return an argument such that equal ones compare equal, and 1, 1.0 and True do not."""
    if isinstance(argument, fx.Node):
        return same_as.get(argument, argument)
    if isinstance(argument, (list, tuple)):
        return tuple(_hashable(part, same_as) for part in argument)
    if isinstance(argument, dict):
        return tuple((key, _hashable(part, same_as)) for key, part in sorted(argument.items()))
    return type(argument), str(argument)
