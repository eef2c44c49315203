"""The formats that a training may give each group: a ladder of widths with the same activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calib.errors import UserError
from calib.formats.format import Format
from smpq.problem.policy import Policy, Space
from smpq.solve.allocate import Ceiling
from smpq.solve.within import is_within, nothing_within

Ladders = Mapping[str, tuple[Format, ...]]
"""By group name, from the fewest bits to the most."""


def ladders_of(space: Space, ceilings: Sequence[Ceiling]) -> Ladders:
    """Return the formats by group that widths are chosen from.

    1. They are integers with a step for each output channel: what a step can be learned of.
    2. Widths of activations are not searched. A group has the widest activation that it is offered, or a narrower one,
       the same limit for all groups that have any within it, where the budget cannot be met otherwise.
    3. A group that is offered no such format keeps its first one, the reference where it is offered.

    `Impossible` when no choice of rungs is within the ceilings, UserError when no group has two rungs or more.
    """
    found = _all_ladders(space, ceilings)
    if all(len(row) < 2 for row in found.values()):
        raise UserError("there is nothing to find: no layer is offered two widths of weights; give more --formats")
    return found


def uniform_of(space: Space, ceilings: Sequence[Ceiling]) -> Ladders:
    """Return one format by group: of the ladders, the widest that is no wider than a limit, the same for all groups, as
    high as the ceilings allow. Errors as `ladders_of`, but one rung is enough.
    """
    ladders = _all_ladders(space, ceilings)
    for widest in sorted({chosen.weight_bits for row in ladders.values() for chosen in row}, reverse=True):
        fitting = {name: [c for c in row if c.weight_bits <= widest] or row[:1] for name, row in ladders.items()}
        found = {name: (row[-1],) for name, row in fitting.items()}
        if is_within(lowest(found), ceilings):
            return found
    raise AssertionError("the lowest rungs are within the ceilings")


def _all_ladders(space: Space, ceilings: Sequence[Ceiling]) -> Ladders:
    widths = sorted({_reads(chosen) for row in space.formats.values() for chosen in row if _learned(chosen)})
    if not widths:
        raise UserError(
            "no layer is offered integer weights with a step for each output channel, which is what can be trained: "
            "give --formats, for example w2a8,w3a8,w4a8,w8a8"
        )
    found: Ladders = {}
    for widest in reversed(widths):
        found = {name: _ladder(row, widest, space.reference) for name, row in space.formats.items()}
        if is_within(lowest(found), ceilings):
            break
    else:
        raise nothing_within("choice of widths that can be trained", lowest(found), ceilings)
    return found


def lowest(ladders: Ladders) -> Policy:
    """Return the policy of the fewest bits."""
    return Policy({name: row[0] for name, row in ladders.items()})


def highest(ladders: Ladders) -> Policy:
    """Return the policy of the most bits."""
    return Policy({name: row[-1] for name, row in ladders.items()})


def _ladder(row: Sequence[Format], widest: int, reference: Format) -> tuple[Format, ...]:
    learned = [chosen for chosen in row if _learned(chosen)]
    if not learned:
        return (reference if reference in row else row[0],)
    own = max((_reads(c) for c in learned if _reads(c) <= widest), default=min(map(_reads, learned)))
    return tuple(sorted((chosen for chosen in learned if _reads(chosen) == own), key=lambda c: c.weight_bits))


def _reads(chosen: Format) -> int:
    return chosen.activation_bits


def _learned(chosen: Format) -> bool:
    integers = chosen.weight.quantized and chosen.weight.is_integer and not chosen.weight.one_scale
    reads = chosen.activation is None or chosen.activation.is_integer
    return integers and reads and chosen.weight_block is None
