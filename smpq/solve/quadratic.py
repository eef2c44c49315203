"""The best policy for values of pairs of moves: proven where that ends within a limit, else with the gap that is left.

Ours. A quadratic programme in integers may not end (CLADO's own scripts with Gurobi and SCIP did not for four formats),
so the solver's time is limited, and a search by single and double changes from the best policy for the values of moves
alone goes on where it stops. The solver's bound then says how much better another policy could be at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calib.formats.format import Format
from smpq.files import PLACES, Where
from smpq.problem.policy import Policy, canonical
from smpq.solve.allocate import (
    PairedValues,
    Problem,
    Solved,
    allocate,
    explanation,
    pairs_of,
    solve_exactly,
    worth,
)
from smpq.solve.within import is_within

SECONDS = 60.0
"""Of the solver, on the wall: a busy machine proves less. The pairs of ResNet-20 with four formats take about ten of a
core where the budget is tight.
"""
_SWEEPS = 1000


@dataclass(frozen=True)
class Answer:
    """A policy, what it is worth by the values, and the most that any policy within the limits can be worth.

    `where` it is the best: `everywhere`; `near` the policy that the values were measured at, farther ones were not
    looked at; or `beyond` where they were measured, since no policy there is within the budget.
    """

    policy: Policy
    value: float
    bound: float
    where: Where = "everywhere"

    @property
    def gap(self) -> float:
        """How much better another policy could be at most; 0 where this one is proven the best."""
        gap = self.bound - self.value
        return gap if gap > 1e-6 * max(abs(self.value), abs(self.bound)) else 0.0

    def __str__(self) -> str:
        where = PLACES[self.where]
        if not self.gap:
            return f"proven the best for these scores{where}"
        share = f" ({100 * self.gap / abs(self.value):.2g} %)" if self.value else ""
        return (
            f"worth {self.value:.4g} by these scores{where}; not proven the best: the solver reached its limit, and "
            f"another plan may be better by up to {self.gap:.2g}{share}"
        )


def solve_pairs(problem: Problem, seconds: float = SECONDS) -> Answer | None:
    """Return the best policy that was found, None when no policy satisfies everything.

    Values that hold near a policy are solved near it; where none there is within the ceilings, everywhere. Without
    seconds for the solver, by local search.
    """
    values = problem.values
    if isinstance(values, PairedValues) and values.near is not None and problem.near is None:
        found = _solve(replace(problem, near=values.near), seconds)
        if found is not None:
            return replace(found, where="near")
        found = _solve(problem, seconds)
        return None if found is None else replace(found, where="beyond")
    return _solve(problem, seconds)


def best_or_explain(problem: Problem, *, quick: bool = False) -> Answer:
    """Return the best policy that was found; Impossible names the nearest feasible point when none meets the budget.

    `quick`: by local search alone, where there are pairs.
    """
    answer = solve_pairs(problem, 0.0 if quick else SECONDS)
    if answer is None:
        raise explanation(problem)
    return answer


def _solve(problem: Problem, seconds: float) -> Answer | None:
    if not pairs_of(problem.values):
        policy = allocate(problem)
        value = math.nan if policy is None else worth(problem.values, policy)
        return None if policy is None else Answer(policy, value, value)
    start = search_pairs(problem)
    if start is None:
        return None
    solved = solve_exactly(problem, seconds) if seconds else Solved(None, math.inf, complete=False)
    found = [start] if solved.policy is None else [start, solved.policy, climb(problem, solved.policy)]
    value, policy = max(((worth(problem.values, each), each) for each in found), key=lambda each: each[0])
    return Answer(policy, value, value if solved.complete else max(value, min(solved.bound, _trivial_bound(problem))))


def _trivial_bound(problem: Problem) -> float:
    """Return the sum of the most that each group, and each two of them, can be worth."""
    most: dict[tuple[str, str], float] = {}
    for (one, other), value in pairs_of(problem.values).items():
        groups = one[0], other[0]
        most[groups] = max(most.get(groups, 0.0), value)
    return sum(max(problem.values[g][c] for c in row) for g, row in problem.space.formats.items()) + sum(most.values())


def search_pairs(problem: Problem) -> Policy | None:
    """Return what single and double changes make of the best policy for the values of moves alone."""
    start = allocate(replace(problem, values=dict(problem.values)))
    return None if start is None else climb(problem, start)


def climb(problem: Problem, start: Policy) -> Policy:
    """Return the policy after single and double changes, as long as one makes it worth more within the limits."""
    model = _Arrays(problem)
    excluded = {canonical(policy, problem.space).key() for policy in problem.excluded}

    def allowed(policy: Policy) -> bool:
        near = problem.near
        return (
            is_within(policy, problem.ceilings)
            and (near is None or sum(c != near.centre[g] for g, c in policy.formats.items()) <= near.changes)
            and policy.key() not in excluded
        )

    best = start
    for _ in range(_SWEEPS):
        changes = (
            canonical(replace(best, formats={**best.formats, **dict(moves)}), problem.space)
            for moves in model.improving(best)
        )
        better = next((policy for policy in changes if allowed(policy)), None)
        if better is None:
            break
        best = better
    return best


class _Arrays:
    """The values of moves as a vector, those of pairs as a symmetric matrix."""

    def __init__(self, problem: Problem) -> None:
        self.moves = [(group, chosen) for group, row in problem.space.formats.items() for chosen in row]
        index = {move: number for number, move in enumerate(self.moves)}
        owners = {group: number for number, group in enumerate(problem.space.formats)}
        self._owner = np.array([owners[group] for group, _ in self.moves])
        self._index = index
        self._linear = np.array([problem.values[group][chosen] for group, chosen in self.moves])
        self._pairs: npt.NDArray[np.float64] = np.zeros((len(self.moves), len(self.moves)))
        for (one, other), value in pairs_of(problem.values).items():
            if one in index and other in index:
                self._pairs[index[one], index[other]] = self._pairs[index[other], index[one]] = value

    def improving(self, policy: Policy) -> Iterator[tuple[tuple[str, Format], ...]]:
        """Yield the changes of one or two groups that make a policy worth more, the best ones first."""
        current = np.array([self._index[group, policy[group]] for group in dict.fromkeys(g for g, _ in self.moves)])
        mine = current[self._owner]
        reward = self._linear + self._pairs[:, current].sum(axis=1)
        single = reward - reward[mine]
        pairs = self._pairs
        double = single[:, None] + single + pairs - pairs[:, mine] - pairs[mine, :] + pairs[np.ix_(mine, mine)]
        moved = np.arange(len(mine)) != mine
        double[(self._owner[:, None] == self._owner) | ~moved[:, None] | ~moved] = -math.inf
        double[np.tril_indices(len(mine))] = -math.inf
        single[~moved] = -math.inf
        least = 1e-12 * max(float(np.abs(self._linear).max()), float(np.abs(pairs).max()))
        ones = [(float(single[i]), (self.moves[i],)) for i in np.flatnonzero(single > least)]
        twos = [
            (float(double[i, j]), (self.moves[i], self.moves[j]))
            for i, j in zip(*np.nonzero(double > least), strict=True)
        ]
        for _, moves in sorted([*ones, *twos], key=lambda change: -change[0]):
            yield moves
