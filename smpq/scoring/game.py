"""One policy as a coalition game: what does each group's format contribute to the value of the whole?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smpq.problem.policy import Policy, Space, canonical
from smpq.value.evaluate import ValueFunction


class PolicyGame:
    """A game between two policies: the players are the groups in which they differ.

    A coalition has moved from `start` to `end`; its value is that of the policy in between, minus that of `start`. The
    Shapley values therefore sum to V(end) - V(start) (efficiency), and say how much of it each group's format brings.
    Joins are no players: every coalition keeps those in float that `end` does, as far as they could work on integers in
    it.
    """

    def __init__(self, value: ValueFunction, space: Space, start: Policy, end: Policy) -> None:
        """Both policies are of `space`. ValueError when `start` keeps other joins in float than `end` would with its
        formats.
        """
        self.players: tuple[str, ...] = tuple(name for name in end.formats if end[name] != start[name])
        self._value = value
        self._space = space
        self._start = start
        self._end = end
        if self._between(()) != canonical(start, space):
            raise ValueError("the two policies of a game differ in joins as well as in formats")

    def __call__(self, coalitions: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return the `[k]` values of coalitions `[k, players]`; they are evaluated together."""
        moved = [
            self._between([name for name, member in zip(self.players, row, strict=True) if member])
            for row in coalitions
        ]
        start, *values = self._value.many([self._start, *moved])
        return np.array(values) - start

    def _between(self, members: Sequence[str]) -> Policy:
        formats = {**self._start.formats, **{name: self._end[name] for name in members}}
        return canonical(Policy(formats, self._end.float_joins), self._space)
