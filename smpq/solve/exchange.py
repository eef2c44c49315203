"""Exchanges: give one group more and take it from another, so that the ceilings still hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from smpq.problem.policy import Policy, Space, canonical
from smpq.solve.allocate import Ceiling, Move, Values
from smpq.solve.within import is_within


class Exchanges:
    """Proposes changes of one or two groups of a policy, the most promising ones first, and learns from what came of
    them. Ours.

    What a change promises is the sum of its moves' marginals plus, where a pair was tried before, the interaction that
    it showed then.
    """

    def __init__(self, space: Space, ceilings: Sequence[Ceiling], excluded: Sequence[Policy] = ()) -> None:
        """Keep what a proposal has to satisfy."""
        self._space = space
        self._ceilings = ceilings
        self._excluded = {canonical(policy, space).key() for policy in excluded}
        self._interactions: dict[frozenset[Move], float] = {}

    def propose(self, centre: Policy, marginals: Values, count: int, tried: set[str]) -> list[Policy]:
        """Return at most `count` untried policies within the ceilings that promise most."""
        promises = sorted(self._changes(centre, marginals), key=lambda change: -change[0])
        found: list[Policy] = []
        for _, moves in promises:
            if len(found) == count:
                break
            policy = canonical(changed(centre, moves), self._space)
            if policy.key() not in tried and policy.key() not in self._excluded and is_within(policy, self._ceilings):
                found.append(policy)
        return found

    def learn(self, centre: Policy, policy: Policy, marginals: Values, gain: float) -> None:
        """Keep the interaction of a pair of moves whose joint gain has been measured."""
        moves = _moves(centre, policy)
        if len(moves) == 2:
            self._interactions[frozenset(moves)] = gain - sum(_gain(centre, marginals, move) for move in moves)

    def _changes(self, centre: Policy, marginals: Values) -> Iterator[tuple[float, tuple[Move, ...]]]:
        moves = [
            (group.name, chosen)
            for group in self._space.groups
            for chosen in self._space.formats[group.name]
            if chosen != centre[group.name]
        ]
        gains = {move: _gain(centre, marginals, move) for move in moves}
        for move in moves:
            yield gains[move], (move,)
        for first, second in combinations(moves, 2):
            if first[0] != second[0]:
                yield (
                    gains[first] + gains[second] + self._interactions.get(frozenset((first, second)), 0.0),
                    (first, second),
                )


def changed(policy: Policy, moves: Sequence[Move]) -> Policy:
    """Return the policy after some moves."""
    return replace(policy, formats={**policy.formats, **dict(moves)})


def _moves(centre: Policy, policy: Policy) -> list[Move]:
    return [(name, chosen) for name, chosen in policy.formats.items() if chosen != centre[name]]


def _gain(centre: Policy, marginals: Values, move: Move) -> float:
    group, chosen = move
    return marginals[group][chosen] - marginals[group][centre[group]]
