"""The rows and columns of a policy problem, as a MILP wants them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from smpq.problem.costs import is_integer
from smpq.problem.policy import Join, Policy, canonical, integer_names

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

    from smpq.solve.allocate import Ceiling, Pairs, Problem

TOLERANCE = 1e-9
_SMALLEST_UNIT = 1e-6


@dataclass
class Rows:
    """Linear rows under construction."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, coefficients: Mapping[int, float], low: float, high: float) -> None:
        """Add `low <= sum of coefficient * column <= high`."""
        row = len(self.low)
        self.entries += [(row, column, value) for column, value in coefficients.items()]
        self.low.append(low)
        self.high.append(high)

    def constraint(self, columns: int) -> LinearConstraint:
        """Return the rows as the solver takes them."""
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_matrix

        rows, cols, values = zip(*self.entries, strict=True)
        return LinearConstraint(
            coo_matrix((values, (rows, cols)), shape=(len(self.low), columns)).tocsr(), self.low, self.high
        )


class Columns:
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


def base_rows(problem: Problem, columns: Columns) -> tuple[Rows, int]:
    """Return the rows of a policy, its joins, what is excluded and the neighbourhood;
    and how many columns there are.
    """
    rows = Rows()
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


def _add_join(rows: Rows, join: Join, columns: Columns) -> None:
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


def _chosen(policy: Policy, columns: Columns) -> dict[int, float]:
    return {columns.formats[pair]: 1.0 for pair in policy.formats.items() if pair in columns.formats}


def add_ceiling(rows: Rows, ceiling: Ceiling, columns: Columns, total: int, slack: int | None) -> int:
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
    rows.add(row, -np.inf, (ceiling.limit - model.fixed) / unit + TOLERANCE)
    return total


def add_products(rows: Rows, pairs: Pairs, columns: Columns, total: int) -> tuple[dict[int, float], int]:
    """Add a variable for each product of two moves of groups that have values of pairs; return their values by column.

    For a move i of one group, the products with all moves of the other sum to x_i. With x of 0 and 1 this makes each
    product what it should be, and the relaxation is the tightest that pairs alone give: the local polytope (Wainwright
    and Jordan 2008, section 4.1.1), against 0 <= y <= x_i, x_j and y >= x_i + x_j - 1 of each product by itself
    (McCormick 1976).
    """
    tables: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for (one, other), value in pairs.items():
        if value and one in columns.formats and other in columns.formats:
            first, second = sorted((one, other), key=columns.formats.__getitem__)
            table = tables.setdefault((first[0], second[0]), {})
            table[columns.formats[first], columns.formats[second]] = value
    values: dict[int, float] = {}
    for groups, table in tables.items():
        firsts, seconds = (
            [column for (group, _), column in columns.formats.items() if group == name] for name in groups
        )
        product = {each: total + number for number, each in enumerate(itertools.product(firsts, seconds))}
        total += len(product)
        values |= {product[each]: value for each, value in table.items()}
        for mine in firsts:
            rows.add({mine: -1.0, **{product[mine, theirs]: 1.0 for theirs in seconds}}, 0.0, 0.0)
        for theirs in seconds:
            rows.add({theirs: -1.0, **{product[mine, theirs]: 1.0 for mine in firsts}}, 0.0, 0.0)
    return values, total
