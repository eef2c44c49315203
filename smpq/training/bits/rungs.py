"""Which width every group has, in a graph in training, and what follows for the costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calib.formats.number_type import NumberType
from calib.network.units import Unit
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy, Space
from smpq.solve.allocate import Ceiling
from smpq.solve.within import excess, is_within
from smpq.training.bits.ladder import Ladders
from smpq.training.lsq import LearnedWeight
from smpq.training.trainable import TrainableGraph

_LEAST_SHARE = 1e-6
"""A group that costs nothing is still pressed on, a little."""


class Rungs:
    """The rung of each group on its ladder. Lowering and raising change the grids of its quantisers in place.

    `lowered` are the groups in the order in which they lost a width.
    """

    def __init__(self, graph: TrainableGraph, space: Space, ladders: Ladders, ceilings: Sequence[Ceiling]) -> None:
        self.graph = graph
        self.ladders = ladders
        self.ceilings = tuple(ceilings)
        self.units: dict[str, tuple[Unit, ...]] = {group.name: group.units for group in space.groups}
        self.numbers = {name: len(row) - 1 for name, row in ladders.items()}
        self.lowered: list[str] = []

    @property
    def quantized(self) -> list[str]:
        """The groups whose weights are integers."""
        return [name for name, row in self.ladders.items() if not row[0].is_float]

    @property
    def open(self) -> list[str]:
        """The groups that can lose another width."""
        return [name for name, number in self.numbers.items() if number > 0]

    @property
    def policy(self) -> Policy:
        """The formats as they are now."""
        return Policy({name: self.ladders[name][number] for name, number in self.numbers.items()})

    @property
    def met(self) -> bool:
        """Whether the formats as they are now are within all ceilings."""
        return is_within(self.policy, self.ceilings)

    @property
    def excess(self) -> float:
        """Cost over limit, of the ceiling that is exceeded most."""
        return excess(self.policy, self.ceilings)

    @property
    def binding(self) -> CostModel:
        """The cost that is over its limit most."""
        now = self.policy
        return max(self.ceilings, key=lambda ceiling: ceiling.model.total(now) / ceiling.limit).model

    def saved(self, name: str) -> float:
        """Return how much of the binding cost the next width down would save."""
        parts, row, number = self.binding.parts[name], self.ladders[name], self.numbers[name]
        return parts[row[number]] - parts[row[number - 1]]

    def share(self, name: str) -> float:
        """Return a group's part of the binding cost of all groups, as they are now."""
        parts, now = self.binding.parts, self.policy
        whole = sum(parts[group][chosen] for group, chosen in now.formats.items())
        return max(parts[name][now[name]] / whole, _LEAST_SHARE) if whole > 0 else 1.0

    def below(self, name: str) -> NumberType:
        """Return the number type of the next width down."""
        return self.ladders[name][self.numbers[name] - 1].weight

    def quantizers(self, name: str) -> list[tuple[torch.nn.Parameter, LearnedWeight]]:
        """Return the weights of a group, each with its quantiser."""
        return [(self.graph.weights[unit.path], self.graph.learned(unit.path)) for unit in self.units[name]]

    def lower(self, name: str) -> None:
        """Take a width away: the bits at the end of every integer are dropped, so the step grows."""
        self.lowered.append(name)
        self._move(name, -1)

    def raise_(self, name: str) -> None:
        """Give the last width back: what the integers stand for stays the same, on a finer grid."""
        self._move(name, 1)

    def fill(self) -> int:
        """Give back the widths that were lost last, as long as all ceilings hold; returns how many."""
        before = len(self.lowered)
        for name in list(reversed(self.lowered)):
            self.numbers[name] += 1
            fits = self.met
            self.numbers[name] -= 1
            if fits:
                self.raise_(name)
                del self.lowered[len(self.lowered) - 1 - self.lowered[::-1].index(name)]
        return before - len(self.lowered)

    def restore(self, lowered: Sequence[str]) -> None:
        """Set the widths that were lost, without touching steps, which the graph's own state holds. ValueError when
        the ladders have no such rungs.
        """
        for name in lowered:
            if self.numbers.get(name, 0) < 1:
                raise ValueError(f"{name!r} has no width to lose")
            self.lowered.append(name)
            self.numbers[name] -= 1
        for name in set(lowered):
            for _, quantizer in self.quantizers(name):
                quantizer.grid = self.ladders[name][self.numbers[name]].weight

    def _move(self, name: str, by: int) -> None:
        row, number = self.ladders[name], self.numbers[name]
        old, new = row[number].weight, row[number + by].weight
        for _, quantizer in self.quantizers(name):
            with torch.no_grad():
                quantizer.step.mul_(ratio(old, new) if by < 0 else 1 / ratio(new, old))
            quantizer.grid = new
        self.numbers[name] += by


def ratio(fine: NumberType, coarse: NumberType) -> float:
    """Return how many steps of the fine grid are one of the coarse grid, such that the coarse values are among the fine
    ones. One bit has the values -1 and +1, which are values of every other width.
    """
    return float(2.0 ** (fine.bits - max(coarse.bits, 2)))
