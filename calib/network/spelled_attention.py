"""Write fused attention as the two products that it is, with the scale, the mask and the softmax between them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from calib.network.nodes import arguments_of, become, insert_call, operator_name

_ATEN = torch.ops.aten
_SUMMED = "baddbmm"
_FUSED = "scaled_dot_product_attention"
_OTHERS = {
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd", "flex_attention",
}  # fmt: skip
"""Operators that hold the two products and are not written out."""


def spell_out_attention(program: ExportedProgram) -> None:
    """Replace `scaled_dot_product_attention` by matmul, scale, mask, softmax and matmul, in place.

    1. The numbers are those of the fused operator, but for the order of sums: torch scales query and key by the square
       root of the scale each, here the scores are scaled once.
    2. Causal and other masks, an own scale and grouped heads (`enable_gqa`) are written out too. A row whose every key
       is masked gives zeros, as in torch.
    3. `baddbmm` without factors, by which `MultiheadAttention` adds a mask, becomes a product and a sum.
    4. What is left fused is said by `why_fused`.

    Dao et al., FlashAttention, arXiv 2205.14135, section 2.2, has the formula.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if operator_name(node) == _FUSED and why_fused(node) is None:
            _spell_out(graph, node)
        elif operator_name(node) == _SUMMED and not node.kwargs:
            bias, left, right = node.args
            become(node, _ATEN.add.Tensor, (insert_call(graph, node, _ATEN.bmm.default, (left, right)), bias))
    program.graph_module.recompile()


def why_fused(node: fx.Node) -> str | None:
    """Return why an operator that holds the two products of attention is not written out; None where it can be, and for
    any other operator.
    """
    name = operator_name(node)
    if name in _OTHERS:
        return "this operator is not written out"
    if name != _FUSED:
        return None
    given = arguments_of(node)
    sizes = [given["query"].meta["val"].shape[-1]]
    if given["enable_gqa"]:
        sizes += [given[tensor].meta["val"].shape[-3] for tensor in ("query", "key", "value")]
    if not all(isinstance(size, int) for size in sizes):
        return "the size or number of its heads is free"
    if given["dropout_p"] != 0:
        return "it has dropout"
    if given["is_causal"] and given["attn_mask"] is not None:
        return "it is causal and has a mask too"
    return None


def _spell_out(graph: fx.Graph, node: fx.Node) -> None:
    given = arguments_of(node)
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))

    def call(target: Any, *args: Any) -> fx.Node:
        return insert_call(graph, node, target, args)

    def of_all_heads(tensor: fx.Node) -> fx.Node:
        heads = query.meta["val"].shape[-3] // tensor.meta["val"].shape[-3] if given["enable_gqa"] else 1
        return tensor if heads == 1 else call(_ATEN.repeat_interleave.self_int, tensor, heads, -3)

    scale = 1 / math.sqrt(query.meta["val"].shape[-1]) if given["scale"] is None else given["scale"]
    turned = call(_ATEN.transpose.int, of_all_heads(key), -2, -1)
    scores = call(_ATEN.mul.Tensor, call(_ATEN.matmul.default, query, turned), scale)
    if given["is_causal"]:
        below = call(_ATEN.tril.default, call(_ATEN.ones_like.default, scores))
        scores = call(_ATEN.masked_fill.Scalar, scores, call(_ATEN.eq.Scalar, below, 0), -math.inf)
    elif mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = call(_ATEN.masked_fill.Scalar, scores, call(_ATEN.logical_not.default, mask), -math.inf)
    elif mask is not None:
        scores = call(_ATEN.add.Tensor, scores, mask)
    shares = call(_ATEN.softmax.int, scores, -1)
    if mask is not None:
        largest = call(_ATEN.amax.default, scores, [-1], True)
        shares = call(_ATEN.masked_fill.Scalar, shares, call(_ATEN.eq.Scalar, largest, -math.inf), 0.0)
    become(node, _ATEN.matmul.default, (shares, of_all_heads(value)))
