"""A value function for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smpq.problem.policy import Policy


class OneByOne:
    """A value function made of a plain function of one policy."""

    def __init__(self, function: Callable[[Policy], float]) -> None:
        """Keep the function."""
        self._function = function

    def __call__(self, policy: Policy) -> float:
        """Return the value of one policy."""
        return self._function(policy)

    def many(self, policies: Iterable[Policy]) -> list[float]:
        """Return the values of several policies, in their order."""
        return [self._function(policy) for policy in policies]
