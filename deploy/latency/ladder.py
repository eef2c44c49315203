"""Where the next engine of a curve is worth most: in the middle of the widest gap. Ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from smpq.problem.policy import Policy

_CLOSE = 1.02
"""Costs that differ by less are no gap: an engine's measurement can hardly tell them apart."""


@dataclass(frozen=True)
class Rung:
    """A policy with its cost as a share of the float model's, and its value, higher is better."""

    policy: Policy
    cost: float
    value: float


def frontier(rungs: Iterable[Rung]) -> list[Rung]:
    """Return the rungs that no other one beats in both cost and value, the cheapest first."""
    found: list[Rung] = []
    for rung in sorted(rungs, key=lambda each: (each.cost, -each.value)):
        if not found or rung.value > found[-1].value:
            found.append(rung)
    return found


def gaps(rungs: Sequence[Rung]) -> list[tuple[Rung, Rung]]:
    """Return the neighbours of a frontier, those farthest apart first.

    Distance is in cost and in the root of the loss, each as a share of the whole range: the divergences that a search
    goes by grow with the square of the error, so that without the root the cheap end would get all engines.
    """
    if len(rungs) < 2:
        return []
    first, last = rungs[0], rungs[-1]

    def loss(rung: Rung) -> float:
        return math.sqrt(last.value - rung.value)

    def distance(pair: tuple[Rung, Rung]) -> float:
        low, high = pair
        return math.hypot((high.cost - low.cost) / (last.cost - first.cost), (loss(low) - loss(high)) / loss(first))

    return sorted(
        (pair for pair in pairwise(rungs) if pair[1].cost > pair[0].cost * _CLOSE), key=distance, reverse=True
    )


class Ladder:
    """Proposes policies that fill the gaps of a frontier. A gap that has no new policy in it is not looked at again."""

    def __init__(self) -> None:
        self._closed: set[tuple[str, str]] = set()

    def next(
        self,
        rungs: Iterable[Rung],
        best_within: Callable[[float], Policy | None],
        is_new: Callable[[Policy], bool],
    ) -> Policy | None:
        """Return the best policy within the middle of the widest gap; None when no gap has a new one.

        `best_within(cost)` is the most valuable policy that is expected to cost at most that, None where there is none.
        """
        for low, high in gaps(frontier(rungs)):
            ends = low.policy.key(), high.policy.key()
            if ends in self._closed:
                continue
            policy = best_within((low.cost + high.cost) / 2)
            if policy is not None and is_new(policy):
                return policy
            self._closed.add(ends)
        return None
