"""Cut a batch of policies into pieces of work that keep together what can be shared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from smpq.problem.policy import Policy

_BISECTIONS = 30


def cut(policies: Sequence[Policy], behind: Mapping[str, int], steps: int, count: int) -> list[list[int]]:
    """Return at most `count` lists of indices into `policies`, each once, the dearest list first.

    `behind[group]` is how many of the `steps` of the network run anew when the group's format changes. In the order of
    a prefix tree over the network, a policy costs the steps behind the first group in which it differs from the one
    before; the first of a piece costs all of them. The pieces are runs of that order, and the cost of the dearest is as
    small as it can be.
    """
    groups = sorted(behind, key=lambda name: -behind[name])
    keys = [[str(policy[name]) for name in groups] for policy in policies]
    order = sorted(range(len(policies)), key=keys.__getitem__)
    costs = [steps]
    for index, following in itertools.pairwise(order):
        differing = (name for name, a, b in zip(groups, keys[index], keys[following], strict=True) if a != b)
        costs.append(behind.get(next(differing, ""), 0))
    low, high = float(steps), float(sum(costs))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(costs, steps, middle)) <= count else (middle, high)
    pieces = _filled(costs, steps, high)
    pieces.sort(key=lambda piece: -(steps + sum(costs[piece.start + 1 : piece.stop])))
    return [[order[position] for position in piece] for piece in pieces]


def _filled(costs: Sequence[int], steps: int, limit: float) -> list[range]:
    """Return runs of positions, each as long as its cost stays within the limit."""
    runs, start, total = [], 0, float(steps)
    for position in range(1, len(costs)):
        if total + costs[position] > limit:
            runs.append(range(start, position))
            start, total = position, float(steps)
        else:
            total += costs[position]
    return [*runs, range(start, len(costs))]
