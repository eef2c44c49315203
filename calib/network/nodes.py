"""Questions about single nodes of a traced graph, and how one is put into it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

OPERATOR = torch._ops.OpOverload  # noqa: SLF001 - the only name torch gives the class

MOVES_ALL = {
    "permute", "t", "transpose", "numpy_T", "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze",
    "unsqueeze", "movedim", "alias", "clone", "contiguous", "detach",
}  # fmt: skip
"""Operators that give every value of their input once, in another order or shape."""
JOINS = {"add", "cat"}
"""Operators that merge tensors, in integers when all of them are."""
_KEPT = ("nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn", "from_node")


def operator_name(node: fx.Node) -> str:
    """Return the ATen name of a node, as `conv2d` or `add`; '' for what is not a call."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OPERATOR):
        return str(node.target.overloadpacket.__name__)
    return "getitem" if node.target is operator.getitem else str(node.target)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call of an operator by name, those that are not given at their defaults."""
    known = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001 - no other way to the names
    given = dict(zip((argument.name for argument in known), node.args, strict=False))
    return {argument.name: argument.default_value for argument in known} | given | dict(node.kwargs)


def is_float(node: fx.Node) -> bool:
    """Whether a node gives one tensor of floats."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def are_alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes give tensors of one type and shape."""
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.dtype != second.dtype:
        return False
    # as text: comparing free sizes would fix them
    return [str(size) for size in first.shape] == [str(size) for size in second.shape]


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose `forward` ran a node, '' for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).split("@", 1)[0] if stack else ""


def moved_from(node: fx.Node) -> fx.Node | None:
    """Return the tensor whose values a node only moves, all of them; None for any other node."""
    if operator_name(node) not in MOVES_ALL or len(node.all_input_nodes) != 1:
        return None
    return node.all_input_nodes[0]


def source_of(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """Return the tensor that a node's values come from, and the nodes that move them, in their order."""
    moves: list[fx.Node] = []
    while (source := moved_from(node)) is not None:
        moves.append(node)
        node = source
    return node, tuple(reversed(moves))


def insert_call(graph: fx.Graph, before: fx.Node, target: Any, args: tuple[Any, ...], value: Any = None) -> fx.Node:
    """Put a call in front of a node, as a part of what that node does; `value` is what it gives, as the trace knows it,
    unless the arguments tell.
    """
    if value is None:
        value = target(*fx.node.map_arg(args, lambda argument: argument.meta["val"]))
    with graph.inserting_before(before):
        node = graph.create_node("call_function", target, args, name=target.overloadpacket.__name__)
    node.meta.update({key: before.meta[key] for key in _KEPT if key in before.meta})
    node.meta["val"] = value
    return node


def become(node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Let a node compute the same by another operator; its name and its readers stay."""
    node.target, node.args, node.kwargs = target, args, {}
