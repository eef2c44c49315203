"""The most valuable policy within all budgets: a multiple-choice knapsack, solved exactly as a MILP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from calib.errors import UserError
from calib.formats import Format
from smpq.costs import CostModel, is_integer
from smpq.policy import Policy, Space
from smpq.quiet import quiet_stdout

Values = Mapping[str, Mapping[Format, float]]
"""Group -> format -> what the policy gains by it; higher is better."""

_TOLERANCE = 1e-9


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


@dataclass(frozen=True)
class Problem:
    """Maximise the sum of values under all ceilings, `excluded` policies left out, inside `near` if given."""

    space: Space
    values: Values
    ceilings: Sequence[Ceiling] = ()
    excluded: Sequence[Policy] = ()
    near: Neighbourhood | None = None


@dataclass
class _Rows:
    """Linear rows under construction."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, coefficients: Mapping[int, float], low: float, high: float) -> None:
        row = len(self.low)
        self.entries += [(row, column, value) for column, value in coefficients.items()]
        self.low.append(low)
        self.high.append(high)

    def constraint(self, columns: int) -> LinearConstraint:
        rows, cols, values = zip(*self.entries, strict=True)
        return LinearConstraint(coo_matrix((values, (rows, cols)), shape=(len(self.low), columns)).tocsr(), self.low, self.high)


def allocate(problem: Problem) -> Policy | None:
    """Return the best policy, or None when no policy satisfies everything.

    The objective is scaled so that its largest coefficient is 1000 and solved to a gap of zero: values of 1e-7 would otherwise
    vanish below the solver's absolute tolerance.
    """
    columns = _columns(problem.space)
    rows, total = _base_rows(problem, columns)
    for ceiling in problem.ceilings:
        total = _add_ceiling(rows, ceiling, columns, total, slack=None)
    gains = np.zeros(total)
    for (group, chosen), column in columns.items():
        gains[column] = problem.values[group][chosen] - max(problem.values[group][c] for c in problem.space.formats[group])
    scale = 1000.0 / max(float(np.abs(gains).max()), 1e-300) if np.any(gains) else 1.0
    return _solve(-gains * scale, rows, columns, total, problem.space)


def nearest_feasible(problem: Problem) -> Policy:
    """Return the policy that exceeds the ceilings least: the largest excess, as a fraction of its limit, is smallest."""
    columns = _columns(problem.space)
    rows, total = _base_rows(problem, columns)
    slack, total = total, total + 1
    for ceiling in problem.ceilings:
        total = _add_ceiling(rows, ceiling, columns, total, slack=slack)
    objective = np.zeros(total)
    objective[slack] = 1.0
    policy = _solve(objective, rows, columns, total, problem.space)
    if policy is None:  # only the exclusions are left to contradict each other
        raise UserError("every policy was excluded; there is nothing left to choose")
    return policy


def solve_or_explain(problem: Problem) -> Policy:
    """Return the best policy; UserError names the nearest feasible point when the budget is impossible."""
    policy = allocate(problem)
    if policy is not None:
        return policy
    closest = nearest_feasible(problem)
    reached = ", ".join(
        f"{c.model.name} {c.model.total(closest):.6g} ({c.model.total(closest) / c.model.float_total:.4g}x of float), wanted at most {c.limit:.6g}"
        for c in problem.ceilings
    )
    raise UserError(
        f"no policy meets the budget; the nearest one has {reached}. Raise the budget to that point, or allow smaller formats with --formats"
    )


def _columns(space: Space) -> dict[tuple[str, Format], int]:
    pairs = [(group.name, chosen) for group in space.groups for chosen in space.formats[group.name]]
    return {pair: column for column, pair in enumerate(pairs)}


def _base_rows(problem: Problem, columns: Mapping[tuple[str, Format], int]) -> tuple[_Rows, int]:
    rows = _Rows()
    for group in problem.space.groups:
        rows.add({columns[group.name, chosen]: 1.0 for chosen in problem.space.formats[group.name]}, 1.0, 1.0)
    count = len(problem.space.groups)
    for policy in problem.excluded:
        rows.add({columns[pair]: 1.0 for pair in policy.formats.items() if pair in columns}, -np.inf, count - 1)
    if problem.near is not None:
        kept = {columns[pair]: 1.0 for pair in problem.near.centre.formats.items() if pair in columns}
        rows.add(kept, count - problem.near.changes, np.inf)
    return rows, len(columns)


def _add_ceiling(rows: _Rows, ceiling: Ceiling, columns: Mapping[tuple[str, Format], int], total: int, slack: int | None) -> int:
    """Add one budget row, in units of its limit; a transition gets a variable that is at least the difference of the two domains."""
    unit = ceiling.limit
    row = {column: ceiling.model.parts[group][chosen] / unit for (group, chosen), column in columns.items()}
    for transition in ceiling.model.transitions:
        if transition.cost <= 0:
            continue
        row[total] = transition.cost / unit
        first, second = (
            {column: 1.0 for (group, chosen), column in columns.items() if group == name and is_integer(chosen)}
            for name in (transition.first, transition.second)
        )
        for plus, minus in ((first, second), (second, first)):
            rows.add({total: 1.0, **dict.fromkeys(plus, -1.0), **dict.fromkeys(minus, 1.0)}, 0.0, np.inf)
        total += 1
    if slack is not None:
        row[slack] = -1.0
    rows.add(row, -np.inf, 1.0 - ceiling.model.fixed / unit + _TOLERANCE)
    return total


def _solve(
    objective: np.ndarray, rows: _Rows, columns: Mapping[tuple[str, Format], int], total: int, space: Space
) -> Policy | None:
    integrality = np.zeros(total)
    integrality[: len(columns)] = 1
    upper = np.full(total, np.inf)
    upper[: len(columns)] = 1.0
    with quiet_stdout():
        result = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(np.zeros(total), upper),
            constraints=rows.constraint(total),
            options={"mip_rel_gap": 0.0},
        )
    infeasible = 2
    if result.status == infeasible:
        return None
    if result.x is None or not result.success:
        raise RuntimeError(f"the solver stopped without an answer: {result.message}")
    return Policy(
        {
            group.name: max(space.formats[group.name], key=lambda chosen, name=group.name: result.x[columns[name, chosen]])  # type: ignore[misc]
            for group in space.groups
        }
    )
