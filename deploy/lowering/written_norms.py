"""Write a BatchNorm behind a layer as the product and the sum that it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from calib.network.nodes import become, insert_call
from calib.network.norms import batch_norm_of, is_layer, results_of

_ATEN = torch.ops.aten


def write_out_norms(graph: fx.Graph) -> None:
    """Replace each BatchNorm that reads what a layer gives, in place.

    These are norms that `calib.network.fold` could not fold, since something else reads their parameters or those of
    the layer. Torch's ONNX exporter would fold them nevertheless, and the weight that the file holds would no longer be
    that of the layer.
    """
    for node in list(graph.nodes):
        norm = batch_norm_of(node)
        results = results_of(node) if norm is not None and is_layer(norm.source) else None
        if norm is None or not results:
            continue
        first, dims = results[0], norm.source.meta["val"].dim()

        def call(target: Any, *args: Any, before: fx.Node = first) -> fx.Node:
            return insert_call(graph, before, target, args)

        def by_channel(tensor: fx.Node, rest: int = dims - 2) -> fx.Node:
            return call(_ATEN.reshape.default, tensor, [-1, *[1] * rest])

        scale = call(_ATEN.rsqrt.default, call(_ATEN.add.Tensor, norm.variance, norm.eps))
        if norm.weight is not None:
            scale = call(_ATEN.mul.Tensor, scale, norm.weight)
        centred = call(_ATEN.sub.Tensor, norm.source, by_channel(norm.mean))
        product = (_ATEN.mul.Tensor, (centred, by_channel(scale)))
        if norm.bias is not None:
            product = (_ATEN.add.Tensor, (call(*product[:1], *product[1]), by_channel(norm.bias)))
        become(first, *product)  # its name stays
        for other in results[1:]:
            other.replace_all_uses_with(first)
            graph.erase_node(other)
        if not isinstance(node.meta["val"], Tensor):
            graph.erase_node(node)
