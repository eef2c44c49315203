"""What a policy costs: bytes, bit operations, average bits; and the form that every cost takes for the solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from calib.formats.format import FLOAT_ACTIVATION_BITS, FP32, Format
from calib.network.graph import TracedModel
from calib.network.units import Unit
from smpq.problem.policy import Group, Join, Policy, Space, integer_regions

_FLOAT_BITS = 32


@dataclass(frozen=True)
class Transition:
    """Cost of converting a tensor between two neighbours, groups or joins: it is paid when one is in an integer region
    and the other is not (`smpq.problem.policy.integer_regions`).
    """

    first: str
    second: str
    cost: float


@dataclass(frozen=True)
class JoinCost:
    """Cost of a join in an integer region: `integer` when it computes on integers, `kept` when it is kept in float."""

    join: Join
    integer: float = 0.0
    kept: float = 0.0


@dataclass(frozen=True)
class CostModel:
    """A cost that is a fixed part, a part for each (group, format), parts for joins, and a non-negative one for each
    transition.

    All in the unit of the cost; `float_total` is what the float model costs. `joins` are those of the space, in its
    order.
    """

    name: str
    fixed: float
    parts: Mapping[str, Mapping[Format, float]]
    float_total: float
    transitions: tuple[Transition, ...] = field(default=())
    joins: tuple[JoinCost, ...] = field(default=())

    def total(self, policy: Policy) -> float:
        """Return what a policy costs."""
        total = self.fixed + sum(self.parts[group][chosen] for group, chosen in policy.formats.items())
        if not self.joins and not self.transitions:
            return total
        integers, among, _ = integer_regions(policy, (cost.join for cost in self.joins))
        total += sum(
            cost.integer if cost.join.name in integers else cost.kept for cost in self.joins if cost.join.name in among
        )
        return total + sum(t.cost for t in self.transitions if (t.first in among) != (t.second in among))


def is_integer(chosen: Format) -> bool:
    """Whether a layer in this format reads and computes with integer activations."""
    return chosen.reads_integers


def weight_bytes(unit: Unit, chosen: Format) -> float:
    """Bytes of one unit's weight as stored: packed integers, scales and zero points in the bits of the number type, or
    floats.
    """
    packed = math.ceil(unit.parameters * chosen.weight_bits / 8)
    if chosen.is_float:
        return packed
    besides = chosen.weight.overhead_bits(unit.out_features, unit.in_features, chosen.weight_block)
    return packed + math.ceil(besides / 8)


def bit_operations(unit: Unit, chosen: Format) -> float:
    """MACs times weight bits times activation bits for one sample; a weight-only format computes with its float
    type.
    """
    activation = (
        max(chosen.activation_bits, FLOAT_ACTIVATION_BITS)
        if not chosen.quantizes_activation
        else chosen.activation_bits
    )
    return float(unit.macs * chosen.weight_bits * activation)


def cost_models(
    space: Space, traced: TracedModel, stored: Callable[[Unit, Format], Format] = lambda _, chosen: chosen
) -> dict[str, CostModel]:
    """Return the costs that are known without building anything.

    `size`: bytes of all parameters and buffers of the graph, weights of units packed and other floats in the target's
    float type (the baseline is the model in FP32). `stored` says as what a runtime holds a format, where that is
    another one: 7-bit weights in 8 bits. `bops`: see `bit_operations`, units only. `avg_bits`: weight bits averaged
    over the parameters of all units, scales not counted.
    """
    unit_weights = {unit.weight for unit in space.units}
    used = {node.name for node in traced.graph.nodes if node.users}
    others = [tensor for name, tensor in traced.state.items() if name in used and name not in unit_weights]
    narrowed = space.reference.weight_bits / 8

    def held(tensor: Tensor) -> float:
        size = tensor.element_size()
        return tensor.numel() * (min(size, narrowed) if tensor.is_floating_point() else size)

    rest, fixed = sum(tensor.numel() * tensor.element_size() for tensor in others), sum(map(held, others))
    parameters = sum(unit.parameters for unit in space.units)
    return {
        "size": _additive(
            "size", space, lambda unit, chosen: weight_bytes(unit, stored(unit, chosen)), float(fixed), float(rest)
        ),
        "bops": _additive("bops", space, bit_operations),
        "avg_bits": _additive(
            "avg_bits", space, lambda unit, chosen: unit.parameters * chosen.weight_bits / parameters
        ),
    }


def _additive(
    name: str, space: Space, cost: Callable[[Unit, Format], float], fixed: float = 0.0, in_fp32: float = 0.0
) -> CostModel:
    """Return a cost of each unit and a fixed part, which is `in_fp32` of the float model."""

    def part(group: Group, chosen: Format) -> float:
        return sum(cost(unit, chosen) for unit in group.units)

    parts = {group.name: {chosen: part(group, chosen) for chosen in space.priced(group.name)} for group in space.groups}
    return CostModel(name, fixed, parts, in_fp32 + sum(part(group, FP32) for group in space.groups))
