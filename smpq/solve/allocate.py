"""The most valuable policy within all budgets: a multiple-choice knapsack, solved exactly as a MILP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from calib.errors import UserError
from calib.formats.format import Format
from smpq.problem.costs import CostModel, is_integer
from smpq.problem.policy import Join, Policy, Space, canonical, integer_names
from smpq.solve.silence_solver import quiet_stdout

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

Values = Mapping[str, Mapping[Format, float]]
"""Group -> format -> what the policy gains by it; higher is better."""

_TOLERANCE = 1e-9
_SMALLEST_UNIT = 1e-6


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
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_matrix

        rows, cols, values = zip(*self.entries, strict=True)
        return LinearConstraint(
            coo_matrix((values, (rows, cols)), shape=(len(self.low), columns)).tocsr(), self.low, self.high
        )


def allocate(problem: Problem) -> Policy | None:
    """Return the best policy, or None when no policy satisfies everything.

    The objective is scaled so that its largest coefficient is 1000 and solved to a gap of zero: values of 1e-7 would
    otherwise vanish below the solver's absolute tolerance.
    """
    columns = _Columns(problem)
    rows, total = _base_rows(problem, columns)
    for ceiling in problem.ceilings:
        total = _add_ceiling(rows, ceiling, columns, total, slack=None)
    gains = np.zeros(total)
    for (group, chosen), column in columns.formats.items():
        gains[column] = problem.values[group][chosen] - max(
            problem.values[group][c] for c in problem.space.formats[group]
        )
    scale = 1000.0 / max(float(np.abs(gains).max()), 1e-300) if np.any(gains) else 1.0
    return _solve(-gains * scale, rows, columns, total, problem)


def nearest_feasible(problem: Problem) -> Policy:
    """Return the policy that exceeds the ceilings least: the largest excess, as a fraction of its limit, is
    smallest.
    """
    columns = _Columns(problem)
    rows, total = _base_rows(problem, columns)
    slack, total = total, total + 1
    for ceiling in problem.ceilings:
        total = _add_ceiling(rows, ceiling, columns, total, slack=slack)
    objective = np.zeros(total)
    objective[slack] = 1.0
    policy = _solve(objective, rows, columns, total, problem)
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


class _Columns:
    """The variables: a binary one for each (group, format), and three for each join where a ceiling has costs for
    joins.

    `works`: the join computes on integers; binary. `among`: it is in an integer region. `merges`: all its operands are.
    The last two follow from the others.
    """

    def __init__(self, problem: Problem) -> None:
        space = problem.space
        pairs = [(group.name, chosen) for group in space.groups for chosen in space.formats[group.name]]
        self.formats = {pair: column for column, pair in enumerate(pairs)}
        names = [join.name for join in space.joins] if any(ceiling.model.joins for ceiling in problem.ceilings) else []
        self.works, self.among, self.merges = (
            {name: len(pairs) + part * len(names) + number for number, name in enumerate(names)} for part in range(3)
        )
        self.binary = len(pairs) + len(names)
        self.count = len(pairs) + 3 * len(names)

    def integer(self, name: str, joins: Mapping[str, int]) -> dict[int, float]:
        """Return the columns whose sum says whether a group, or a join by one of its variables, works on integers."""
        if name in joins:
            return {joins[name]: 1.0}
        return {column: 1.0 for (group, chosen), column in self.formats.items() if group == name and is_integer(chosen)}


def _base_rows(problem: Problem, columns: _Columns) -> tuple[_Rows, int]:
    rows = _Rows()
    space = problem.space
    for group in space.groups:
        rows.add({columns.formats[group.name, chosen]: 1.0 for chosen in space.formats[group.name]}, 1.0, 1.0)
    for join in space.joins if columns.works else ():
        _add_join(rows, join, columns)
    for policy in problem.excluded:
        if not columns.works and canonical(policy, space).float_joins:
            continue  # no join is kept in float here, so this policy is not found anyway
        chosen = _chosen(policy, columns)
        integers = integer_names(policy, space.joins)
        signs = {column: 1.0 if name in integers else -1.0 for name, column in columns.works.items()}
        rows.add({**chosen, **signs}, -np.inf, len(space.groups) + sum(sign > 0 for sign in signs.values()) - 1)
    if problem.near is not None:
        rows.add(_chosen(problem.near.centre, columns), len(space.groups) - problem.near.changes, np.inf)
    return rows, columns.count


def _add_join(rows: _Rows, join: Join, columns: _Columns) -> None:
    """Tie a join's variables to those of its operands and readers: products of binaries, written as inequalities."""
    works, among, merges = columns.works[join.name], columns.among[join.name], columns.merges[join.name]
    together, read = {merges: 1.0}, {among: -1.0}
    for operand in join.operands:
        natural = columns.integer(operand, columns.among)
        rows.add({merges: -1.0, **natural}, 0.0, np.inf)
        rows.add({works: -1.0, **columns.integer(operand, columns.works)}, 0.0, np.inf)
        together |= dict.fromkeys(natural, -1.0)
    rows.add(together, 1.0 - len(join.operands), np.inf)
    for reader in join.readers:
        integer = columns.integer(reader, columns.works)
        rows.add({among: 1.0, merges: -1.0, **dict.fromkeys(integer, -1.0)}, -1.0, np.inf)
        read |= integer
    rows.add(read, 0.0, np.inf)
    rows.add({merges: 1.0, among: -1.0}, 0.0, np.inf)
    rows.add({among: 1.0, works: -1.0}, 0.0, np.inf)


def _chosen(policy: Policy, columns: _Columns) -> dict[int, float]:
    return {columns.formats[pair]: 1.0 for pair in policy.formats.items() if pair in columns.formats}


def _add_ceiling(rows: _Rows, ceiling: Ceiling, columns: _Columns, total: int, slack: int | None) -> int:
    """Add one budget row, in units of its limit; a transition gets a variable that is at least the difference of the
    two domains.
    """
    model = ceiling.model
    # where the limit is next to nothing, its unit would make coefficients that the solver cannot hold
    unit = max(
        ceiling.limit, _SMALLEST_UNIT * max(abs(cost) for parts in model.parts.values() for cost in parts.values())
    )
    row = {column: model.parts[group][chosen] / unit for (group, chosen), column in columns.formats.items()}
    for cost in model.joins:
        name = cost.join.name
        row[columns.works[name]] = (cost.integer - cost.kept) / unit
        row[columns.among[name]] = cost.kept / unit
    for transition in model.transitions:
        if transition.cost <= 0:
            continue
        row[total] = transition.cost / unit
        first, second = (columns.integer(name, columns.among) for name in (transition.first, transition.second))
        for plus, minus in ((first, second), (second, first)):
            rows.add({total: 1.0, **dict.fromkeys(plus, -1.0), **dict.fromkeys(minus, 1.0)}, 0.0, np.inf)
        total += 1
    if slack is not None:
        row[slack] = -1.0
    rows.add(row, -np.inf, (ceiling.limit - model.fixed) / unit + _TOLERANCE)
    return total


def _solve(objective: np.ndarray, rows: _Rows, columns: _Columns, total: int, problem: Problem) -> Policy | None:
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
            options={"mip_rel_gap": 0.0},
        )
    infeasible = 2
    if result.status == infeasible:
        return None
    if result.x is None or not result.success:
        raise RuntimeError(f"the solver stopped without an answer: {result.message}")
    formats = {
        group.name: max(
            problem.space.formats[group.name],
            key=lambda chosen, name=group.name: result.x[columns.formats[name, chosen]],  # type: ignore[misc]
        )
        for group in problem.space.groups
    }
    policy = Policy(formats, frozenset(name for name, column in columns.works.items() if result.x[column] < 0.5))
    return place_joins(policy, problem)


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
            if changed != best and (gain > _TOLERANCE or (fewer and gain >= 0)):
                best, improved = changed, True
    return best
