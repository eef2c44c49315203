"""Give an attention without heads the axis of heads that torch's ONNX exporter asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from calib.network.nodes import become, insert_call, operator_name

_ATEN = torch.ops.aten
_HEADS, _WITHOUT = -3, 3


def give_heads(graph: fx.Graph) -> None:
    """Let each `scaled_dot_product_attention` of tensors `[n, t, c]` run with one head, in place.

    1. Queries, keys and values get an axis of heads, and so does a mask `[n, t, s]`; one of `[t, s]` needs none.
    2. The result loses that axis, and keeps its name.
    3. Tensors of another rank stay, and so do grouped heads: their first axis is the one of heads.
    """
    for node in list(graph.nodes):
        if operator_name(node) != "scaled_dot_product_attention" or node.kwargs.get("enable_gqa"):
            continue
        tensors = [node.args[place] for place in range(3)]
        if any(tensor.meta["val"].dim() != _WITHOUT for tensor in tensors):
            continue

        def with_head(argument: Any, before: fx.Node = node) -> Any:
            if not isinstance(argument, fx.Node) or argument.meta["val"].dim() != _WITHOUT:
                return argument
            return insert_call(graph, before, _ATEN.unsqueeze.default, (argument, _HEADS))

        args, options = tuple(map(with_head, node.args)), {key: with_head(each) for key, each in node.kwargs.items()}
        mixed = insert_call(graph, node, node.target, args, node.meta["val"].unsqueeze(_HEADS))
        mixed.kwargs = options
        become(node, _ATEN.squeeze.dim, (mixed, _HEADS))
