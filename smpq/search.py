"""From scores to a policy: solve, then improve on the value itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from calib.formats import Format
from smpq.allocate import Ceiling, Neighbourhood, Problem, Values, allocate, solve_or_explain
from smpq.evaluate import ValueFunction
from smpq.policy import Policy, Space

EXHAUSTIVE = 512
_DAMPING = 0.5


@dataclass(frozen=True)
class Effort:
    """How much the search may spend after scoring: rounds of marginals near the solution, and evaluations in all."""

    rounds: int = 4
    evaluations: int = 400


@dataclass(frozen=True)
class Choice:
    """A policy and its value on the calibration data.

    `path` names each step that led to it with the value it had; `marginals` are the scores as they were refined on the way, from
    which a search under slightly different ceilings can start.
    """

    policy: Policy
    value: float
    path: tuple[tuple[str, float], ...]
    marginals: Values


def choose(
    value: ValueFunction,
    space: Space,
    starts: Mapping[str, Values],
    ceilings: Sequence[Ceiling],
    effort: Effort,
    excluded: Sequence[Policy] = (),
    advance: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Return the most valuable policy found within the ceilings.

    1. A space of at most 512 policies is searched completely: the result is the best there is.
    2. Otherwise the plan of each set of scores in `starts` is evaluated; the best one is the start.
    3. Rounds: measure what every single change does to the current plan, solve again within a few changes (the marginals of the
       rounds are averaged, so that the rounds do not oscillate), evaluate, keep the best seen.
    4. Never returns a plan whose measured value is worse than the best seen. UserError when the ceilings are impossible.
    """
    plans = {name: solve_or_explain(Problem(space, values, ceilings, excluded)) for name, values in starts.items()}
    if space.size() <= EXHAUSTIVE:
        every = list(feasible(space, ceilings, excluded))
        best = max(zip(value.many(every), every, strict=True), key=lambda pair: pair[0])[1]
        return Choice(best, value(best), (("all policies", value(best)),), next(iter(starts.values())))
    path = [(name, value(policy)) for name, policy in plans.items()]
    winner = max(plans, key=lambda name: value(plans[name]))
    best = plans[winner]
    marginals: dict[str, dict[Format, float]] = {group: dict(row) for group, row in starts[winner].items()}
    spent = 0
    for number in range(effort.rounds):
        changes = max(2, len(space.groups) // (2 + number))
        singles = sum(len(space.formats[group.name]) - 1 for group in space.groups)
        if spent + singles > effort.evaluations:
            break
        advance(f"round {number + 1}")
        measured = _single_changes(value, space, best)
        spent += singles
        for group, row in measured.items():
            anchor = marginals[group][best[group]]
            for chosen, change in row.items():
                previous = marginals[group][chosen] - anchor
                marginals[group][chosen] = change if number == 0 else _DAMPING * previous + (1 - _DAMPING) * change
            marginals[group][best[group]] = 0.0
        candidate, tried = _descend(value, space, marginals, ceilings, excluded, best, changes)
        spent += tried
        path.append((f"round {number + 1}", value(candidate)))
        if candidate == best:
            break
        best = candidate
    return Choice(best, value(best), tuple(path), marginals)


def feasible(space: Space, ceilings: Sequence[Ceiling], excluded: Sequence[Policy] = ()) -> Iterator[Policy]:
    """Yield every policy within the ceilings."""
    names = [group.name for group in space.groups]
    without = {policy.key() for policy in excluded}
    for formats in product(*(space.formats[name] for name in names)):
        policy = Policy(dict(zip(names, formats, strict=True)))
        if policy.key() not in without and all(c.model.total(policy) <= c.limit * (1 + 1e-9) for c in ceilings):
            yield policy


def _single_changes(value: ValueFunction, space: Space, policy: Policy) -> dict[str, dict[Format, float]]:
    """Return what changing one group of `policy` alone does to the value."""
    moves = [(group.name, chosen) for group in space.groups for chosen in space.formats[group.name] if chosen != policy[group.name]]
    start, *values = value.many([policy, *(policy.with_format(*move) for move in moves)])
    found: dict[str, dict[Format, float]] = {group.name: {} for group in space.groups}
    for (name, chosen), changed in zip(moves, values, strict=True):
        found[name][chosen] = changed - start
    return found


def _descend(
    value: ValueFunction,
    space: Space,
    marginals: Values,
    ceilings: Sequence[Ceiling],
    excluded: Sequence[Policy],
    best: Policy,
    changes: int,
) -> tuple[Policy, int]:
    """Try the plan that the marginals promise most of, within fewer and fewer changes until one is really better."""
    tried = 0
    seen: set[str] = {best.key()}
    while changes >= 1:
        candidate = allocate(Problem(space, marginals, ceilings, excluded, Neighbourhood(best, changes)))
        if candidate is None:
            break
        if candidate.key() not in seen:
            seen.add(candidate.key())
            tried += 1
            if value(candidate) > value(best):
                return candidate, tried
        changes = min(changes - 1, changes * 2 // 3)
    return best, tried
