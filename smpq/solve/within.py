"""Whether a policy is within ceilings, and by how much it is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smpq.problem.policy import Policy
    from smpq.solve.allocate import Ceiling, Impossible

_TOLERANCE = 1e-9


def is_within(policy: Policy, ceilings: Iterable[Ceiling]) -> bool:
    """Whether a policy costs no more than any ceiling allows."""
    return all(ceiling.model.total(policy) <= ceiling.limit * (1 + _TOLERANCE) for ceiling in ceilings)


def nothing_within(what: str, nearest: Policy, ceilings: Sequence[Ceiling]) -> Impossible:
    """Return the error for a rule that finds no policy; `nearest` is the one that exceeds the ceilings least."""
    from smpq.solve.allocate import Impossible

    reached = ", ".join(f"{c.model.name} {c.model.total(nearest):.6g}, wanted at most {c.limit:.6g}" for c in ceilings)
    return Impossible(
        f"no {what} meets the budget; the nearest one has {reached}. Raise the budget, allow smaller formats with "
        "--formats, or use another --method"
    )


def excess(policy: Policy, ceilings: Sequence[Ceiling]) -> float:
    """Return the cost over its limit, of the ceiling where that is largest; at most 1 within all of them."""
    return max((ceiling.model.total(policy) / ceiling.limit for ceiling in ceilings), default=0.0)
