"""Whether scores choose the widest format everywhere when nothing limits them, and what makes them choose another."""

from __future__ import annotations

from smpq.problem.policy import Policy, Space
from smpq.solve.allocate import Problem, Values, pairs_of, worth
from smpq.solve.quadratic import climb

_NAMED = 3


def doubt_about_widest(space: Space, values: Values) -> str | None:
    """Return which terms make narrower formats worth more than the widest ones; None where none do.

    "No budget gives the widest format" is the check that CLADO's authors make of a quadratic model (README of
    CLADO_MPQ): terms that break it are errors of the samples, or too large for a model of second order. By local
    search, from the widest formats and from the best ones by themselves.
    """
    widest = Policy({group: max(row) for group, row in space.formats.items()})
    everywhere = Problem(space, values)
    alone = Policy({group: max(row, key=values[group].__getitem__) for group, row in space.formats.items()})
    best = max((climb(everywhere, start) for start in (widest, alone)), key=lambda policy: worth(values, policy))
    gain = worth(values, best) - worth(values, widest)
    if gain <= 1e-9 * max(abs(worth(values, best)), abs(worth(values, widest))):
        return None
    narrower = {group: chosen for group, chosen in best.formats.items() if chosen != widest[group]}
    terms = [
        (values[group][chosen] - values[group][widest[group]], f"{group} in {chosen}")
        for group, chosen in narrower.items()
    ]
    terms += [
        (value, f"{one[0]} in {one[1]} with {other[0]} in {other[1]}")
        for (one, other), value in pairs_of(values).items()
        if best[one[0]] == one[1] and best[other[0]] == other[1]
    ]
    named = "; ".join(
        f"{name} {value:+.3g}" for value, name in sorted(terms, key=lambda term: -term[0])[:_NAMED] if value > 0
    )
    return (
        f"without a budget they would give {len(narrower)} of {len(space.groups)} layers less than the widest format, "
        f"for a gain of {gain:.3g} that may not be there; the terms that gain most are {named}"
    )
