"""Find the layers of a model that can be quantised, and say why the others cannot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, fx

from calib.network.graph import TracedModel
from calib.network.nodes import module_path, moved_from, operator_name

_OPERATORS = {"conv1d", "conv2d", "conv3d", "linear"}
_LOOKS_UP = "embedding"
_MATRIX = 2
_OF_SIZES = {
    "sym_size", "sym_numel", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"
}  # fmt: skip
"""Operators whose result depends on the sizes of a tensor, and not on its values."""
_BAG = "no target looks up rows of integers and sums them"
_TRANSPOSED = (
    "transposed convolutions have no integer kernel on any target: TensorRT-RTX 1.7 turns their integers into floats "
    "in front of one in half precision"
)
_RECURRENT = (
    "recurrent layers are one fused operator, which ONNX Runtime's own quantize_dynamic leaves in float as "
    "torch exports it"
)
_PRODUCT = (
    "a product that no linear layer computes: the parameter is not one matrix on the right, or is used in two ways"
)
_WEIGHTED_BUT_SKIPPED = {
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _TRANSPOSED),
    "embedding_bag": _BAG,
    "bilinear": "bilinear layers have no integer kernel on any target",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT),
    **dict.fromkeys(("matmul", "mm", "addmm", "bmm", "baddbmm", "mv", "einsum"), _PRODUCT),
}


@dataclass(frozen=True)
class Unit:
    """One quantisable layer: one weight and every place in the graph that uses it.

    `weight` and `bias` are graph names of the parameters; `calls` are the graph nodes that multiply, in order, and
    `inputs` the tensors they read. `gathers` are the nodes that look up rows: an `embedding` has only those, a
    `tied_embedding` is a head too. `macs` counts multiply-accumulates for one sample over all calls. `aliases` are
    further module paths of the same weight (tied layers).
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
    gathers: tuple[str, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        """All graph nodes that read the weight: those that multiply, then those that look up rows."""
        return self.calls + self.gathers

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
    3. An embedding is a unit, and one with the head that is tied to it: both see the rounded rows.
    4. A weight that is computed in the graph (weight norm, a product of parameters) is left in floating point; so is
       one that yet another operator reads, which would otherwise see the rounded values, and one of a layer that sees
       no input of the model, or the sizes of one alone: what it gives is a constant.
    5. Every other parameter of two dimensions or more that something reads is skipped too, with what reads it.
    """
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    skipped: dict[str, Skipped] = {}
    for node in traced.graph.nodes:
        name = operator_name(node)
        if name in _OPERATORS or name == _LOOKS_UP:
            weight = _weight_of(node)
            if not isinstance(weight, fx.Node) or weight.name not in traced.parameter_names:
                path = module_path(node) or node.name
                skipped[path] = Skipped(path, name, "its weight is computed inside the model")
            elif traced.state[weight.name].dim() < _MATRIX:
                path = _path(traced, node)
                skipped[path] = Skipped(path, name, "its weight is a vector, which no integer kernel multiplies by")
            else:
                calls[weight.name].append(node)
    computed = _computed(traced)
    units = []
    for nodes in calls.values():
        paths = list(dict.fromkeys(_path(traced, node) for node in nodes))
        reason = _reason(nodes, computed)
        if reason is not None:
            skipped[paths[0]] = Skipped(paths[0], operator_name(nodes[0]), reason)
            continue
        units.append(_unit(traced, nodes, paths, {_bias(traced, node) for node in _products(nodes)}))
    for entry in _others(traced, calls):
        if not any(entry.path == path or entry.path.startswith(f"{path}.") for path in tuple(skipped)):
            skipped[entry.path] = entry
    return tuple(units), tuple(skipped.values())


def _computed(traced: TracedModel) -> set[fx.Node]:
    """Return the tensors that depend on the values of an input of the model."""
    found = {traced.nodes[name] for name in traced.inputs}
    for node in traced.steps:
        if operator_name(node) not in _OF_SIZES and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _reason(nodes: Sequence[fx.Node], computed: set[fx.Node]) -> str | None:
    """Return why the weight that some calls multiply by cannot be a unit; None when it can."""
    if not computed.issuperset(nodes):
        return "it sees no input of the model: what it gives is a constant"
    if len({_kind(node) for node in _products(nodes)}) > 1:
        return "its weight is used by different operators"
    if len(nodes) > len(_gathers(nodes)) > 0 and operator_name(_products(nodes)[0]) != "linear":
        return "its weight is used by different operators"
    others = [operator_name(user) for user in _weight(nodes[0]).users if user not in nodes]
    return f"its weight is read by {others[0]} too" if others else None


def _others(traced: TracedModel, calls: Mapping[str, Collection[fx.Node]]) -> Iterator[Skipped]:
    """Yield the parameters of two dimensions or more that something else than `calls` reads, and what does."""
    own = {name for name, _ in traced.module.named_parameters()}
    for node, parameter in traced.parameter_names.items():
        if parameter not in own or traced.state[node].dim() < _MATRIX:
            continue
        reader = _first_reader(traced.nodes[node], calls.get(node, ()))
        if reader is None:
            continue
        name = operator_name(reader)
        path, reason = module_path(reader), _WEIGHTED_BUT_SKIPPED.get(name)
        if reason is None or not path or not parameter.startswith(f"{path}."):
            path = parameter.removesuffix(".weight")
        yield Skipped(path, name, reason or f"no layer multiplies by it ({name} reads it)")


def _first_reader(node: fx.Node, known: Collection[fx.Node]) -> fx.Node | None:
    """Return what reads a tensor first, besides what is known, through whatever only moves its values; None where
    nothing does.
    """
    for user in node.users:
        found = user if moved_from(user) is None else _first_reader(user, known)
        if found is not None and found.op == "call_function" and found not in known:
            return found
    return None


def _unit(traced: TracedModel, nodes: list[fx.Node], paths: list[str], biases: set[str | None]) -> Unit:
    weight, calls, gathers = _weight(nodes[0]), _products(nodes), _gathers(nodes)
    shape = tuple(traced.state[weight.name].shape)
    return Unit(
        path=paths[0],
        operator=_kind(calls[0]) if not gathers else "tied_embedding" if calls else "embedding",
        weight=weight.name,
        bias=biases.pop() if len(biases) == 1 else None,
        weight_shape=shape,
        parameters=math.prod(shape),
        macs=sum(_macs(traced, node, shape) for node in calls),
        calls=tuple(node.name for node in calls),
        inputs=tuple(str(node.args[0]) for node in calls),
        aliases=tuple(paths[1:]),
        gathers=tuple(node.name for node in gathers),
    )


def _gathers(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if operator_name(node) == _LOOKS_UP]


def _products(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if operator_name(node) != _LOOKS_UP]


def _bias(traced: TracedModel, node: fx.Node) -> str | None:
    """Return the parameter that a layer adds; None where it adds none, or a computed tensor."""
    bias = node.args[2] if len(node.args) > 2 else None
    return bias.name if isinstance(bias, fx.Node) and bias.name in traced.state else None


def _path(traced: TracedModel, node: fx.Node) -> str:
    """The module path when the weight is the `weight` of that module, else the parameter's own name."""
    parameter = traced.parameter_names[_weight(node).name]
    module = module_path(node)
    own = getattr(traced.module.get_submodule(module), "weight", None)
    if module and isinstance(own, Tensor) and own.data_ptr() == attrgetter(parameter)(traced.module).data_ptr():
        return module
    return parameter.removesuffix(".weight")


def _weight(node: fx.Node) -> fx.Node:
    weight = _weight_of(node)
    assert isinstance(weight, fx.Node)
    return weight


def _weight_of(node: fx.Node) -> object:
    return node.args[0 if operator_name(node) == _LOOKS_UP else 1]


def _kind(node: fx.Node) -> str:
    name = operator_name(node)
    if name == "linear":
        return "linear" if node.args[0].meta["val"].dim() == _MATRIX else "linear_nd"  # type: ignore[union-attr]
    groups = node.args[6] if len(node.args) > 6 else 1
    if groups == 1:
        return name
    channels = node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    return f"depthwise_{name}" if groups == channels else f"grouped_{name}"


def _macs(traced: TracedModel, node: fx.Node, weight_shape: tuple[int, ...]) -> int:
    return traced.elements_of_one(node.meta["val"]) // weight_shape[0] * math.prod(weight_shape)
