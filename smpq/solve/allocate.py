"""The most valuable policy within all budgets: a multiple-choice knapsack, also of pairs, solved exactly as a MILP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calib.errors import UserError
from calib.formats.format import Format
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy, Space, canonical
from smpq.solve.rows import TOLERANCE, Columns, Rows, add_ceiling, add_products, base_rows
from smpq.solve.silence_solver import quiet_stdout
from smpq.solve.within import is_within

Values = Mapping[str, Mapping[Format, float]]
"""Group -> format -> what the policy gains by it; higher is better."""

Move = tuple[str, Format]
"""A group and the format it moves to."""

Pairs = Mapping[tuple[Move, Move], float]
"""What a policy gains, besides the values of two moves of different groups, by having both; each pair stands once."""


_EXCLUSIONS = 20
_LET_THROUGH = 1e-5
"""More, as a share of a limit, than what the solver lets a row exceed it by."""


class Impossible(UserError):  # noqa: N818 - the name says what is wrong
    """No policy satisfies everything."""


@dataclass(frozen=True)
class Ceiling:
    """A cost that may be at most `limit`, in the cost's unit."""

    model: CostModel
    limit: float


@dataclass(frozen=True)
class Neighbourhood:
    """Policies that differ from `centre` in at most `changes` groups."""

    centre: Policy
    changes: int


class PairedValues(dict[str, Mapping[Format, float]]):
    """Values of moves, with those of pairs of moves.
    `near`: where they were measured, and how far that says something.
    """

    def __init__(self, values: Values, pairs: Pairs, near: Neighbourhood | None = None) -> None:
        """Keep everything."""
        super().__init__(values)
        self.pairs = pairs
        self.near = near


def pairs_of(values: Values) -> Pairs:
    """Return the values of pairs; there are none where the policy is worth the sum of its moves."""
    return values.pairs if isinstance(values, PairedValues) else {}


def completed(values: Values, space: Space) -> Values:
    """Return the values with 0 for each move of the space that they do not name."""
    rows = {group: {**dict.fromkeys(space.formats[group], 0.0), **row} for group, row in values.items()}
    return PairedValues(rows, values.pairs, values.near) if isinstance(values, PairedValues) else rows


def worth(values: Values, policy: Policy) -> float:
    """Return what a policy is worth: the sum of the values of its moves and of its pairs of moves."""
    formats = policy.formats
    return sum(values[group][chosen] for group, chosen in formats.items()) + sum(
        value
        for (one, other), value in pairs_of(values).items()
        if formats[one[0]] == one[1] and formats[other[0]] == other[1]
    )


@dataclass(frozen=True)
class Problem:
    """Maximise the worth of a policy under all ceilings, `excluded` policies left out, inside `near` if given."""

    space: Space
    values: Values
    ceilings: Sequence[Ceiling] = ()
    excluded: Sequence[Policy] = ()
    near: Neighbourhood | None = None


@dataclass(frozen=True)
class Solved:
    """What the solver came to: the best policy that it has found, None without one, and a value that no policy exceeds.

    `complete`: it is the best there is.
    """

    policy: Policy | None
    bound: float
    complete: bool


def allocate(problem: Problem) -> Policy | None:
    """Return the best policy, or None when no policy satisfies everything."""
    return solve_exactly(problem).policy


def solve_exactly(problem: Problem, seconds: float = np.inf) -> Solved:
    """Return the best policy, or what is known of it after so many seconds.

    The solver takes what exceeds a ceiling by its tolerance, a millionth: that is excluded, and it solves again. Where
    that comes to no end, as with layers that are alike, it solves once under limits that are lower by the tolerance:
    the policy is then within the ceilings, and not known to be the best.
    """
    tried = problem
    for _ in range(_EXCLUSIONS):
        found = _solved(tried, seconds)
        if found.policy is None or is_within(found.policy, problem.ceilings):
            return found
        tried = replace(tried, excluded=(*tried.excluded, found.policy))
    lower = [replace(ceiling, limit=ceiling.limit * (1 - _LET_THROUGH)) for ceiling in problem.ceilings]
    return replace(_solved(replace(problem, ceilings=lower), seconds), bound=found.bound, complete=False)


def _solved(problem: Problem, seconds: float) -> Solved:
    """Return what the solver finds, within its tolerance.

    The objective is scaled so that its largest coefficient is 1000 and solved to a gap of zero: values of 1e-7 would
    otherwise vanish below the solver's absolute tolerance. A pair is a product of two variables, which becomes a
    variable of its own (`smpq.solve.rows.add_products`).
    """
    columns = Columns(problem)
    rows, total = base_rows(problem, columns)
    for ceiling in problem.ceilings:
        total = add_ceiling(rows, ceiling, columns, total, slack=None)
    products, total = add_products(rows, pairs_of(problem.values), columns, total)
    gains = np.zeros(total)
    most = {group: max(problem.values[group][c] for c in row) for group, row in problem.space.formats.items()}
    for (group, chosen), column in columns.formats.items():
        gains[column] = problem.values[group][chosen] - most[group]
    for column, value in products.items():
        gains[column] = value
    scale = 1000.0 / max(float(np.abs(gains).max()), 1e-300) if np.any(gains) else 1.0
    found = _solve(-gains * scale, rows, columns, total, problem, seconds)
    return replace(found, bound=sum(most.values()) - found.bound / scale)


def nearest_feasible(problem: Problem) -> Policy:
    """Return the policy that exceeds the ceilings least: the largest excess, as a fraction of its limit, is
    smallest.
    """
    columns = Columns(problem)
    rows, total = base_rows(problem, columns)
    slack, total = total, total + 1
    for ceiling in problem.ceilings:
        total = add_ceiling(rows, ceiling, columns, total, slack=slack)
    objective = np.zeros(total)
    objective[slack] = 1.0
    policy = _solve(objective, rows, columns, total, problem).policy
    if policy is None:  # only the exclusions are left to contradict each other
        raise Impossible("every policy was excluded; there is nothing left to choose")
    return policy


def solve_or_explain(problem: Problem) -> Policy:
    """Return the best policy; Impossible names the nearest feasible point when no policy meets the budget."""
    policy = allocate(problem)
    if policy is None:
        raise explanation(problem)
    return policy


def explanation(problem: Problem) -> Impossible:
    """Return the error for a budget that no policy meets; it names the nearest feasible point."""
    closest = nearest_feasible(problem)
    reached = ", ".join(
        f"{c.model.name} {c.model.total(closest):.6g} ({c.model.total(closest) / c.model.float_total:.4g}x of float), "
        f"wanted at most {c.limit:.6g}"
        for c in problem.ceilings
    )
    return Impossible(
        f"no policy meets the budget; the nearest one has {reached}. Raise the budget to that point, or allow smaller "
        "formats (--formats, --pin)"
    )


def _solve(
    objective: np.ndarray,
    rows: Rows,
    columns: Columns,
    total: int,
    problem: Problem,
    seconds: float = np.inf,
) -> Solved:
    """Minimise; `bound` is in the objective's unit."""
    from scipy.optimize import Bounds, milp

    integrality = np.zeros(total)
    integrality[: columns.binary] = 1
    upper = np.full(total, np.inf)
    upper[: columns.count] = 1.0
    with quiet_stdout():
        result = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(np.zeros(total), upper),
            constraints=rows.constraint(total),
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
    stopped, infeasible = 1, 2
    if result.status == infeasible:
        return Solved(None, np.inf, complete=True)
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    if result.x is None and result.status == stopped:
        return Solved(None, bound, complete=False)
    if result.x is None or not (result.success or result.status == stopped):
        raise RuntimeError(f"the solver stopped without an answer: {result.message}")
    formats = {
        group.name: max(
            problem.space.formats[group.name],
            key=lambda chosen, name=group.name: result.x[columns.formats[name, chosen]],  # type: ignore[misc]
        )
        for group in problem.space.groups
    }
    policy = Policy(formats, frozenset(name for name, column in columns.works.items() if result.x[column] < 0.5))
    return Solved(place_joins(policy, problem), bound, complete=bool(result.success))


def place_joins(policy: Policy, problem: Problem) -> Policy:
    """Return the policy with each join where the ceilings' costs want it, by single changes as long as one makes the
    policy cheaper.

    A join that costs the same either way works on integers: nothing is known of it yet, and runtimes are made for that.
    Joins that cannot work on integers under the policy are not named. An excluded policy is not returned.
    """
    models = [ceiling for ceiling in problem.ceilings if ceiling.model.joins]
    excluded = {canonical(policy, problem.space).key() for policy in problem.excluded}

    def cost(candidate: Policy) -> float:
        if candidate.key() in excluded:
            return math.inf
        return sum(ceiling.model.total(candidate) / ceiling.limit for ceiling in models)

    best = canonical(policy, problem.space)
    improved = True
    while improved and models:
        improved = False
        for join in problem.space.joins:
            changed = canonical(replace(best, float_joins=best.float_joins ^ {join.name}), problem.space)
            gain, fewer = cost(best) - cost(changed), len(changed.float_joins) < len(best.float_joins)
            if changed != best and (gain > TOLERANCE or (fewer and gain >= 0)):
                best, improved = changed, True
    return best
