"""LayerNorms whose channels can be scaled and shifted, because the layers that read them can undo it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.units import Unit

_LAYERS = {"linear", "linear_nd"}
_SIZES = {"sym_size", "sym_numel"}
_OF_MEMORY = {"memory_format"}
_SHAPES = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "alias", "clone",
    "contiguous", "detach",
}  # fmt: skip
"""Operators that keep the order of the values in memory:
channels stay where they are if the last axis keeps its size.
"""


@dataclass(frozen=True)
class RescalableNorm:
    """A LayerNorm over the last axis, whose result linear layers alone read: graph names of its gain and offset,
    the layers, and what they read, which are the result itself or parts and means of it with the same last axis.

    `shifts`: the norm has an offset and every layer a bias of its own, so that channels can be shifted too.
    """

    gain: str
    offset: str | None
    units: tuple[Unit, ...]
    tensors: tuple[str, ...]
    shifts: bool


def rescalable_norms(traced: TracedModel, units: Sequence[Unit], parameters: Mapping[str, str]) -> list[RescalableNorm]:
    """Return the norms in the order of the graph. `parameters` are the graph names of what may be changed.

    Left alone are: a norm without a gain; one of several axes; one whose gain or offset something else reads, as two
    calls of a norm do; one whose result anything but linear units reads; one with a layer whose weight is multiplied
    with other tensors too, or looked up.
    """
    layers = {call: unit for unit in units if unit.operator in _LAYERS for call in unit.calls}
    found = [_rescalable(traced, node, layers, parameters) for node in traced.steps if _is_norm(node)]
    return [norm for norm in found if norm is not None]


def rescaled(traced: TracedModel, norm: RescalableNorm, factor: Tensor, shift: Tensor | None) -> dict[str, Tensor]:
    """Return the parameters, by graph name, with which the norm gives (x - shift) / factor, and its layers what they
    gave. `factor` and `shift` are float64 `[channels]`; None where `norm.shifts` is False.

    Li et al., RepQ-ViT, arXiv 2212.08254, section 3.2, with a shift that is free.
    """
    moved = torch.zeros_like(factor) if shift is None else shift
    changed = {norm.gain: traced.state[norm.gain].double() / factor}
    if norm.offset is not None:
        changed[norm.offset] = (traced.state[norm.offset].double() - moved) / factor
    for unit in norm.units:
        weight = traced.state[unit.weight].double()
        changed[unit.weight] = weight * factor
        if shift is not None:
            assert unit.bias is not None
            changed[unit.bias] = traced.state[unit.bias].double() + weight @ shift
    return {name: tensor.to(traced.state[name].dtype) for name, tensor in changed.items()}


def _is_norm(node: fx.Node) -> bool:
    return (operator_name(node) == "layer_norm" and not node.kwargs
            and len(list(node.args[1])) == 1)  # type: ignore[arg-type]  # fmt: skip


def _rescalable(
    traced: TracedModel, node: fx.Node, layers: Mapping[str, Unit], parameters: Mapping[str, str]
) -> RescalableNorm | None:
    gain, offset = (*node.args[2:4], None, None)[:2]
    if not _own(gain, {node}, parameters) or (offset is not None and not _own(offset, {node}, parameters)):
        return None
    reads = _reads(node, layers)
    if not reads or gain is offset:
        return None
    units = {layers[call.name].path: layers[call.name] for call in reads}
    names = {call.name for call in reads}
    if any(not names.issuperset(unit.uses) or unit.weight not in parameters for unit in units.values()):
        return None
    assert isinstance(gain, fx.Node)
    return RescalableNorm(
        gain.name,
        offset.name if isinstance(offset, fx.Node) else None,
        tuple(units.values()),
        tuple(dict.fromkeys(tensor.name for tensor in reads.values())),
        offset is not None and all(_has_own_bias(traced, unit, parameters) for unit in units.values()),
    )


def _own(argument: object, readers: set[fx.Node], parameters: Mapping[str, str]) -> bool:
    """Whether a node is a parameter that may be changed, and that nothing but `readers` reads."""
    return isinstance(argument, fx.Node) and argument.name in parameters and readers.issuperset(argument.users)


def _has_own_bias(traced: TracedModel, unit: Unit, parameters: Mapping[str, str]) -> bool:
    if unit.bias is None or traced.state[unit.bias].shape != (unit.out_features,):
        return False
    return _own(traced.nodes[unit.bias], {traced.nodes[call] for call in unit.calls}, parameters)


def _reads(norm: fx.Node, layers: Mapping[str, Unit]) -> dict[fx.Node, fx.Node]:
    """Return the calls of layers that read the result of a norm, with the tensor that each reads; none where anything
    else reads it too.
    """
    found: dict[fx.Node, fx.Node] = {}
    left = [norm]
    for tensor in left:
        for user in tensor.users:
            if user.name in layers and user.args[0] is tensor and tensor not in user.args[1:]:
                found[user] = tensor
            elif _keeps_channels(user, tensor):
                left.append(user)
            elif operator_name(user) not in _SIZES:
                return {}
    return found


def _keeps_channels(node: fx.Node, tensor: fx.Node) -> bool:
    """Whether each value that a node gives is one, or a mean of some, of the same channel of `tensor`: of its last
    axis, which is the last of the result too.
    """
    name, axes = operator_name(node), tensor.meta["val"].dim()
    if not node.args or node.args[0] is not tensor or not _OF_MEMORY.issuperset(node.kwargs):
        return False
    rest = node.args[1:]

    def last(axis: object) -> bool:
        return isinstance(axis, int) and axis % axes == axes - 1

    def all_but_last(given: object) -> bool:
        return isinstance(given, list | tuple) and len(given) > 0 and not any(map(last, given))

    if name in _SHAPES:
        before, after = tensor.meta["val"].shape, node.meta["val"].shape
        return len(after) > 0 and isinstance(after[-1], int) and before[-1] == after[-1]
    if name in {"slice", "select"}:
        return not last(rest[0] if rest else 0)
    if name == "transpose":
        return not last(rest[0]) and not last(rest[1])
    if name == "permute":
        return last(list(rest[0])[-1])  # type: ignore[arg-type]
    if name == "mean":
        return bool(rest) and all_but_last(rest[0])
    if name == "roll":
        return len(rest) > 1 and all_but_last(rest[1])
    return name == "dropout" and rest[-1] is False
