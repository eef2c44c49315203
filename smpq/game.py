"""One policy as a coalition game: what does each group's format contribute to the value of the whole?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smpq.evaluate import ValueFunction
from smpq.policy import Policy


class PolicyGame:
    """A game between two policies: the players are the groups in which they differ.

    A coalition has moved from `start` to `end`; its value is that of the policy in between, minus that of `start`. The Shapley values
    therefore sum to V(end) - V(start) (efficiency), and say how much of it each group's format brings.
    """

    def __init__(self, value: ValueFunction, start: Policy, end: Policy) -> None:
        """Both policies are about the same groups."""
        self.players: tuple[str, ...] = tuple(name for name in end.formats if end[name] != start[name])
        self._value = value
        self._start = start
        self._end = end

    def __call__(self, coalitions: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return the `[k]` values of coalitions `[k, players]`; they are evaluated together."""
        moved = [
            Policy(
                {**self._start.formats, **{name: self._end[name] for name, member in zip(self.players, row, strict=True) if member}}
            )
            for row in coalitions
        ]
        start, *values = self._value.many([self._start, *moved])
        return np.array(values) - start
