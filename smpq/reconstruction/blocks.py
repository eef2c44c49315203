"""The blocks of a network, found from its graph: stretches of steps that one tensor enters and one tensor leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from calib.network.execution import NO_EDITS, Execution
from calib.network.graph import TracedModel
from calib.network.units import Unit

_MOST_UNITS = 8
"""A stretch with more layers than a transformer block or a residual block has is cut further."""


@dataclass(frozen=True)
class Block:
    """The steps from `start` up to, and without, `stop`. `outputs` are the tensors that it makes and later steps read,
    of those of floats with a row for each sample; `units` the layers whose first use is in it.
    """

    start: int
    stop: int
    outputs: tuple[str, ...]
    units: tuple[Unit, ...]

    def channel_axis(self, shape: Sequence[int]) -> int:
        """Return which axis of an output of this shape counts channels.

        It is axis 1 where the last layer is a convolution of as many axes, else the last axis of three and axis 1 of
        others, unless only the other one is as long as the last layer is wide.
        """
        layer = self.units[-1].weight_shape
        if len(shape) < 3:
            return -1
        usual = -1 if len(shape) == 3 else 1
        if len(layer) > 2:
            return 1 if len(layer) == len(shape) else usual
        return next((axis for axis in (usual, -usual) if shape[axis] == layer[0]), usual)


def find_blocks(traced: TracedModel, units: Sequence[Unit]) -> tuple[Block, ...]:
    """Return the blocks in the order of the graph; together they hold every step.

    1. A network may be cut in front of a step where a single tensor that depends on the inputs is alive, which has one
       row a sample: behind the add of a residual block, for example. Sizes do not count.
    2. Cuts with no layer between them, or none behind them, are one cut.
    3. A stretch of more than eight layers, as in a network whose skips are long, is cut where the fewest tensors are
       alive: what a long skip carries is alive everywhere, what a residual block adds in it only there. It is cut only
       where the piece has made one tensor that later steps read, and the pieces likewise, as far as that goes.

    Ours; the residual and transformer blocks of BRECQ (Li et al., arXiv 2102.05426) and FIMA-Q follow from it.
    """
    lives = _Lives(traced)
    cuts = [0, *[step for step in range(1, len(traced.steps)) if lives.single(step)], len(traced.steps)]
    position = {node: number for number, node in enumerate(traced.steps)}
    places = {min((traced.nodes[use] for use in unit.uses), key=position.__getitem__): unit for unit in units}
    firsts = sorted(position[node] for node in places)

    def layers(start: int, stop: int) -> int:
        return sum(start <= first < stop for first in firsts)

    fine, left = [0], list(pairwise(cuts))[::-1]
    while left:
        start, stop = left.pop()
        pieces = _pieces(lives, start, stop, layers) if layers(start, stop) > _MOST_UNITS else []
        left += pieces[::-1]
        if not pieces:
            fine.append(stop)
    kept = [0]
    for start, stop in pairwise(fine):
        if layers(start, stop) and start > kept[-1] and layers(kept[-1], start):
            kept.append(start)
    kept.append(len(traced.steps))
    return tuple(
        Block(
            start,
            stop,
            lives.made(start, stop),
            tuple(unit for node, unit in places.items() if start <= position[node] < stop),
        )
        for start, stop in pairwise(kept)
    )


def _pieces(lives: _Lives, start: int, stop: int, layers: Callable[[int, int], int]) -> list[tuple[int, int]]:
    """Return the pieces of a stretch that is cut where the fewest tensors are alive, with layers on both sides;
    none where it cannot be cut.
    """
    inner = [step for step in range(start + 1, stop) if layers(start, step) and layers(step, stop)]
    alive = {step: len(lives.tensors(step)) for step in inner}
    for fewest in sorted(set(alive.values())):
        ends = [start]
        for step in inner:
            if alive[step] == fewest and lives.one_new(ends[-1], step):
                ends.append(step)
        if len(ends) > 1:
            return list(pairwise([*ends, stop]))
    return []


class _Lives:
    """Which tensors are alive in front of each step, and which of them depend on the inputs."""

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self._rows = _with_a_row_for_each_sample(traced)
        self._sizes = _sizes(traced)
        moved = set(traced.inputs)
        for node in traced.steps:
            if any(argument.name in moved for argument in node.all_input_nodes):
                moved.add(node.name)
        alive, self._alive = set(traced.inputs), []
        for node in traced.steps:
            self._alive.append({name for name in alive if name in moved})
            alive.add(node.name)
            alive -= set(traced.last_uses.get(node.name, ()))
        self._alive.append({name for name in alive if name in moved and name not in self._sizes})
        self._made = {name: number for number, name in enumerate([node.name for node in traced.steps])}

    def tensors(self, step: int) -> set[str]:
        """Tensors that depend on the inputs; those that steps make and nothing reads do not count."""
        used = {name for name in self._alive[step] if self._traced.nodes[name].users}
        return used - self._sizes

    def single(self, step: int) -> bool:
        found = self.tensors(step)
        return len(found) == 1 and found <= self._rows

    def one_new(self, since: int, step: int) -> bool:
        found = self.tensors(step)
        return len(self.made(since, step)) == 1 and found <= self._rows

    def made(self, start: int, stop: int) -> tuple[str, ...]:
        rows = sorted(self.tensors(stop) & self._rows)
        made = [name for name in rows if start <= self._made.get(name, -1) < stop]
        return tuple(name for name in made if self._traced.nodes[name].meta["val"].is_floating_point())


def _with_a_row_for_each_sample(traced: TracedModel) -> set[str]:
    """Tensors whose first axis counts samples: seen in runs on two batches, or on the one that the model takes."""
    found: set[str] | None = None
    for count in (2, 1) if traced.dynamic_batch else (len(traced.example[0]),):
        seen: set[str] = set()

        def note(name: str, tensor: Tensor, count: int = count, seen: set[str] = seen) -> None:
            if tensor.dim() > 0 and len(tensor) == count:
                seen.add(name)

        with torch.no_grad():
            inputs = [tensor[:count] for tensor in traced.example]
            Execution(traced, inputs, NO_EDITS, note).advance(NO_EDITS, observe=note)
        found = seen if found is None else found & seen
    return found or set()


def _sizes(traced: TracedModel) -> set[str]:
    """Steps that give numbers, as the size of an axis; not those that give several tensors."""
    return {node.name for node in traced.steps if not isinstance(node.meta.get("val"), Tensor | tuple | list)}
