"""Whether a policy is within ceilings: what methods with a rule of their own need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smpq.solve.within import excess, is_within, nothing_within

if TYPE_CHECKING:
    from smpq.methods.problem import SearchProblem
    from smpq.problem.policy import Policy
    from smpq.solve.allocate import Ceiling


def best_within(policies: Sequence[tuple[Policy, float]], ceilings: Sequence[Ceiling], what: str) -> Policy:
    """Return the policy within the ceilings that is worth most, of some with what they are worth; the error of
    `nothing_within` where there is none, `what` says of which kind.
    """
    allowed = [pair for pair in policies if is_within(pair[0], ceilings)]
    if not allowed:
        nearest, _ = min(policies, key=lambda pair: excess(pair[0], ceilings))
        raise nothing_within(what, nearest, ceilings)
    return max(allowed, key=lambda pair: pair[1])[0]


def ceilings_or_size(problem: SearchProblem, share: float) -> tuple[Ceiling, ...]:
    """Return the limits that the budget sets; where it sets none that is known, as for a latency, one on the size: so
    much of the way from the smallest policy to the largest.
    """
    from smpq.solve.allocate import Ceiling

    if problem.ceilings:
        return problem.ceilings
    size, space = problem.costs["size"], problem.space
    least, most = (
        sum(pick(size.parts[group.name][chosen] for chosen in space.formats[group.name]) for group in space.groups)
        for pick in (min, max)
    )
    return (Ceiling(size, size.fixed + least + share * (most - least)),)
