"""The cheapest policy of those that lose little enough: bisection along the frontier of cost against value. Ours."""

from __future__ import annotations

import math
from collections.abc import Callable

from smpq.problem.policy import Policy

_CLOSE = 1.01
"""Ends of the bracket whose ratio is below this are the same: less than what an engine's measurement can tell."""
_STEPS = 12


def cheapest(
    best_within: Callable[[float], Policy | None],
    cost: Callable[[Policy], float],
    allowed: Callable[[Policy], bool],
    low: float,
    high: float,
) -> Policy | None:
    """Return the cheapest policy found that is allowed and costs less than `high`; None where there is none.

    `best_within(limit)` is the most valuable policy that costs at most `limit`, None where there is none. `low` is a
    cost below which there is no policy. What a policy loses falls as its value rises, so that along the best policies
    the allowed ones are the dearer ones; where that fails, the result is allowed and may not be the cheapest.
    """
    found = None
    for _ in range(_STEPS):
        if low <= 0 or high <= low * _CLOSE:
            break
        middle = math.sqrt(low * high)
        policy = best_within(middle)
        if policy is not None and allowed(policy):
            found, high = policy, min(middle, cost(policy))
        else:
            low = middle
    return found
