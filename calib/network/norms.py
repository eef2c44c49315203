"""BatchNorm as an operator of the graph: which tensors it reads, and what it comes to where it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from calib.network.nodes import arguments_of, operator_name

_MATRIX = 2
_OPERATORS = {"_native_batch_norm_legit_no_training", "batch_norm"}
_LAYERS = {"conv1d", "conv2d", "conv3d", "linear"}


class BatchNorm(NamedTuple):
    """A call that normalises `source` with running statistics. Each other tensor is `[channels]`; without `weight` and
    `bias` they are one and zero.
    """

    source: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    mean: fx.Node
    variance: fx.Node
    eps: float

    @property
    def read(self) -> tuple[fx.Node, ...]:
        """The tensors that it normalises with."""
        return tuple(each for each in self[1:5] if isinstance(each, fx.Node))


def batch_norm_of(node: fx.Node) -> BatchNorm | None:
    """Return what a node is as a BatchNorm with running statistics; None where it is none."""
    if operator_name(node) not in _OPERATORS:
        return None
    given = arguments_of(node)
    mean, variance = given["running_mean"], given["running_var"]
    if given.get("training") or mean is None or variance is None:
        return None
    return BatchNorm(given["input"], given["weight"], given["bias"], mean, variance, float(given["eps"]))


def is_layer(node: fx.Node) -> bool:
    """Whether a node multiplies by a weight such that a norm of what it gives is one of the rows of the weight."""
    if operator_name(node) != "linear":
        return operator_name(node) in _LAYERS
    return bool(node.meta["val"].dim() == node.args[1].meta["val"].dim() == _MATRIX)  # type: ignore[union-attr]


def neutral_values(norm: BatchNorm) -> dict[fx.Node, float]:
    """Return by tensor the value that all its channels have in a BatchNorm that gives what it is given."""
    values = {norm.weight: 1.0, norm.bias: 0.0, norm.mean: 0.0, norm.variance: 1.0 - norm.eps}
    return {tensor: value for tensor, value in values.items() if tensor is not None}


def leave_out_neutral(program: ExportedProgram, state: Mapping[str, Tensor]) -> None:
    """Remove each BatchNorm that gives what it is given, in place; `state` is by the graph name of the tensor. One that
    adds its bias to what a layer without a bias gives becomes the bias of that layer.
    """
    graph, renamed = program.graph, dict[str, str]()
    for node in list(graph.nodes):
        norm = batch_norm_of(node)
        results = results_of(node) if norm is not None else None
        if norm is None or results is None or not _is_neutral(norm, state):
            continue
        if norm.bias is not None and bool((state[norm.bias.name] != 0).any()):
            norm.source.args = (*norm.source.args[:2], norm.bias, *norm.source.args[3:])
        for result in results:
            result.replace_all_uses_with(norm.source)
            renamed[result.name] = norm.source.name
        for dead in dict.fromkeys((*results, node)):
            graph.erase_node(dead)
    for output in program.graph_signature.output_specs:
        while (name := getattr(output.arg, "name", None)) in renamed:
            output.arg.name = renamed[name]
    if renamed:
        program.graph_module.recompile()


def results_of(node: fx.Node) -> list[fx.Node] | None:
    """Return what stands for the normalised tensor of a BatchNorm; None where something reads the statistics."""
    if isinstance(node.meta["val"], Tensor):
        return [node]
    return list(node.users) if all(user.args[1:] == (0,) for user in node.users) else None


def _takes_bias(node: fx.Node) -> bool:
    """Whether a node is a layer without a bias that nothing but its norm reads."""
    return is_layer(node) and len(node.users) == 1 and node.args[2:3] in ((), (None,))


def _is_neutral(norm: BatchNorm, state: Mapping[str, Tensor]) -> bool:
    """The variance is one as nearly as its type can say."""
    if not all(tensor.name in state and state[tensor.name].numel() for tensor in norm.read):
        return False
    values = {tensor: state[tensor.name].detach().double() for tensor in norm.read}
    deviation = (values[norm.variance] + norm.eps - 1).abs().max()
    left = {norm.variance, *([norm.bias] if _takes_bias(norm.source) else [])}
    exact = [(tensor, value) for tensor, value in neutral_values(norm).items() if tensor not in left]
    near = 2 * torch.finfo(state[norm.variance.name].dtype).eps
    return bool(deviation <= near) and all(bool((values[tensor] == value).all()) for tensor, value in exact)
