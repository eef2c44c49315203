"""Find the layers of a model that can be quantised, and say why the others cannot."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from calib.network.graph import TracedModel, elements_of_one, operator_name

_OPERATORS = {"conv1d", "conv2d", "linear"}
_WEIGHTED_BUT_SKIPPED = {
    "conv3d": "3-D convolutions have no integer kernel on any target",
    "conv_transpose1d": "transposed convolutions have no integer kernel on any target",
    "conv_transpose2d": "transposed convolutions have no integer kernel on any target",
    "conv_transpose3d": "transposed convolutions have no integer kernel on any target",
    "embedding": "a table look-up multiplies nothing",
    "embedding_bag": "a table look-up multiplies nothing",
    "bilinear": "bilinear layers have no integer kernel on any target",
    "lstm": "recurrent layers are one fused operator",
    "gru": "recurrent layers are one fused operator",
    "rnn_tanh": "recurrent layers are one fused operator",
    "matmul": "a product with a parameter that is not a Linear module",
    "mm": "a product with a parameter that is not a Linear module",
    "einsum": "a product with a parameter that is not a Linear module",
}


@dataclass(frozen=True)
class Unit:
    """One quantisable layer: one weight and every place in the graph that multiplies by it.

    `weight` and `bias` are graph names of the parameters; `calls` are the graph nodes, in order, and `inputs` the
    tensors they read. `macs` counts multiply-accumulates for one sample over all calls. `aliases` are further module
    paths of the same weight (tied layers).
    """

    path: str
    operator: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    parameters: int
    macs: int
    calls: tuple[str, ...]
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def out_features(self) -> int:
        """Output channels: the leading dimension of the weight."""
        return self.weight_shape[0]

    @property
    def in_channels(self) -> int:
        """Input channels of a group of a convolution, inputs of a linear layer."""
        return self.weight_shape[1]

    @property
    def in_features(self) -> int:
        """Length of one dot product: input channels of a group times the kernel's size."""
        return math.prod(self.weight_shape[1:])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a run's files."""
        return asdict(self)


@dataclass(frozen=True)
class Skipped:
    """A layer with weights that stays in floating point, and why."""

    path: str
    operator: str
    reason: str


def find_units(traced: TracedModel) -> tuple[tuple[Unit, ...], tuple[Skipped, ...]]:
    """Return the quantisable layers in graph order, and the weighted layers that are not.

    1. A unit is a weight, not a module: a module that runs twice is one unit with two calls, tied modules are one unit.
    2. The path is that of the module; a parameter used by `F.linear` outside a Linear module goes by its own name.
    3. A weight that is computed in the graph (weight norm, a product of parameters) is left in floating point; so is
       one that another operator reads as well (a head tied to an embedding), which would otherwise see the rounded
       values.
    """
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    skipped: dict[str, Skipped] = {}
    for node in traced.graph.nodes:
        name = operator_name(node)
        if name in _OPERATORS:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight.name in traced.parameter_names:
                calls[weight.name].append(node)
            else:
                path = traced.module_path(node) or node.name
                skipped[path] = Skipped(path, name, "its weight is computed inside the model")
        elif name in _WEIGHTED_BUT_SKIPPED and any(
            argument.name in traced.parameter_names for argument in node.all_input_nodes
        ):
            path = traced.module_path(node) or node.name
            skipped[path] = Skipped(path, name, _WEIGHTED_BUT_SKIPPED[name])
    units = []
    for nodes in calls.values():
        kinds = {_kind(node) for node in nodes}
        biases = {
            node.args[2].name if len(node.args) > 2 and isinstance(node.args[2], fx.Node) else None for node in nodes
        }
        paths = list(dict.fromkeys(_path(traced, node) for node in nodes))
        if len(kinds) > 1:
            skipped[paths[0]] = Skipped(paths[0], operator_name(nodes[0]), "its weight is used by different operators")
            continue
        others = [operator_name(user) for user in _weight(nodes[0]).users if user not in nodes]
        if others:
            skipped[paths[0]] = Skipped(paths[0], operator_name(nodes[0]), f"its weight is read by {others[0]} too")
            continue
        units.append(_unit(traced, nodes, kinds.pop(), paths, biases))
    return tuple(units), tuple(skipped.values())


def _unit(traced: TracedModel, nodes: list[fx.Node], kind: str, paths: list[str], biases: set[str | None]) -> Unit:
    weight = _weight(nodes[0])
    shape = tuple(traced.state[weight.name].shape)
    return Unit(
        path=paths[0],
        operator=kind,
        weight=weight.name,
        bias=biases.pop() if len(biases) == 1 else None,
        weight_shape=shape,
        parameters=math.prod(shape),
        macs=sum(_macs(node, shape) for node in nodes),
        calls=tuple(node.name for node in nodes),
        inputs=tuple(str(node.args[0]) for node in nodes),
        aliases=tuple(paths[1:]),
    )


def _path(traced: TracedModel, node: fx.Node) -> str:
    """The module path when the weight is the `weight` of that module, else the parameter's own name."""
    weight = _weight(node)
    parameter = traced.parameter_names[weight.name]
    module = traced.module_path(node)
    own = getattr(traced.module.get_submodule(module), "weight", None)
    if module and isinstance(own, Tensor) and own.data_ptr() == traced.state[weight.name].data_ptr():
        return module
    return parameter.removesuffix(".weight")


def _weight(node: fx.Node) -> fx.Node:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def _kind(node: fx.Node) -> str:
    name = operator_name(node)
    if name == "linear":
        return "linear" if node.args[0].meta["val"].dim() == 2 else "linear_nd"  # type: ignore[union-attr]
    groups = node.args[6] if len(node.args) > 6 else 1
    if groups == 1:
        return name
    channels = node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    return f"depthwise_{name}" if groups == channels else f"grouped_{name}"


def _macs(node: fx.Node, weight_shape: tuple[int, ...]) -> int:
    return elements_of_one(node.meta["val"]) // weight_shape[0] * math.prod(weight_shape)
