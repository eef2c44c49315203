"""The terms of the latency model, and what is expected of them before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.formats.format import Format
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space, integer_regions

Matrix = np.ndarray

_EXPECTED_SAVING = 0.5
"""Share of a layer's float time that integers, or blocks of integer weights, are expected to save."""
_EXPECTED_CONVERSIONS = 0.3
"""What all conversions together would cost, as a share of the float engine's time."""
_SMALLEST_SHARE = 0.2
"""Even a layer or tensor of next to no work deviates by this part of an average one."""


JOINS = ("integer", "kept")


@dataclass(frozen=True)
class Term:
    """One coefficient: of a (group, format), of an edge whose tensor has to be converted, or of a join among integers.

    The kinds are `format`, `edge`, and for joins among integers `integer`, or `kept` in float.
    """

    kind: str
    first: str
    second: str = ""


@dataclass(frozen=True)
class Prior:
    """Expected coefficients, and the parts of their covariance, each of unit strength: name -> `[terms, terms]`."""

    mean: Matrix
    parts: Mapping[str, Matrix]


def terms_of(space: Space, edges: Sequence[Edge]) -> tuple[Term, ...]:
    """Return the terms that a space needs; conversions and joins only where a format works on integers."""
    terms = [
        Term("format", group.name, str(chosen))
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    ]
    if any(chosen.reads_integers for chosen in space.offered):
        terms += [Term(kind, join.name) for kind in JOINS for join in space.joins]
        terms += [Term("edge", edge.first, edge.second) for edge in edges]
    return tuple(terms)


def row_of(policy: Policy, space: Space, terms: Sequence[Term]) -> Matrix:
    """Return which terms a policy has, `[terms]` of zeros and ones."""
    integers, among, _ = integer_regions(policy, space.joins)

    def has(term: Term) -> bool:
        if term.kind == "format":
            return str(policy[term.first]) == term.second
        if term.kind in JOINS:
            return term.first in among and (term.first in integers) == (term.kind == "integer")
        return (term.first in among) != (term.second in among)

    return np.array([float(has(term)) for term in terms])


def work_shares(space: Space) -> dict[str, float]:
    """Return group -> its expected share of the float engine's time: multiply-accumulates, and weights to be read."""
    work = {
        group.name: sum(unit.macs + unit.parameters * bool(unit.calls) for unit in group.units)
        for group in space.groups
    }
    total = sum(work.values())
    return {name: amount / total for name, amount in work.items()}


def prior_of(space: Space, edges: Sequence[Edge], terms: Sequence[Term]) -> Prior:
    """Return what is expected of a network that nobody has measured.

    A format changes a group's time in proportion to its work, by a factor that all groups share in part (`integers`,
    `format`, per operator `operator`), that groups of the same shape share (`shape` for all of its formats, `shape and
    format`), and that is its own in part (`group`, `own`); `call` is a cost that does not depend on the work. A
    conversion costs in proportion to the tensor's size, with a common factor (`conversions`), those of its place,
    between layers or at a join (`place`, `place and size`), and one of its own (`edge`); a join among integers saves or
    costs likewise, by what becomes of it (`joins`, `join`).
    """
    share, count = work_shares(space), len(space.groups)
    total = sum(edge.elements for edge in edges) or 1
    size = {(edge.first, edge.second): edge.elements / total for edge in edges}
    around = {join.name: sum(part for ends, part in size.items() if join.name in ends) for join in space.joins}
    operator = {group.name: group.units[0].operator for group in space.groups}
    shape = {
        group.name: tuple(sorted((unit.operator, unit.weight_shape, unit.macs) for unit in group.units))
        for group in space.groups
    }
    chosen = [Format.from_text(term.second) if term.kind == "format" else None for term in terms]
    saves = np.array(
        [found is not None and (found.quantizes_activation or found.weight_block is not None) for found in chosen]
    )

    def each(kind: str, amount: Callable[[Term], float]) -> Matrix:
        return np.array([amount(term) if term.kind == kind else 0.0 for term in terms])

    def alike(amounts: Matrix, classes: Sequence[object]) -> Matrix:
        """Covariance of terms of one class that share a factor."""
        same = np.array([[first == second for second in classes] for first in classes], bool)
        return np.asarray(np.outer(amounts, amounts) * same)

    work = each("format", lambda term: share[term.first])
    own = each("format", lambda term: share[term.first] + _SMALLEST_SHARE / count)
    call = each("format", lambda _: 1 / count)
    converted = each("edge", lambda term: size[term.first, term.second])
    own_edge = each("edge", lambda term: size[term.first, term.second] + _SMALLEST_SHARE / max(len(edges), 1))
    joined = np.sum([each(kind, lambda term: around[term.first]) for kind in JOINS], axis=0)
    parts = {
        "integers": np.outer(work * saves, work * saves),
        "format": alike(work, [term.second for term in terms]),
        "operator": alike(work, [(term.second, operator.get(term.first)) for term in terms]),
        "call": np.outer(call, call),
        "shape": alike(own, [shape.get(term.first) for term in terms]),
        "shape and format": alike(own, [(term.second, shape.get(term.first)) for term in terms]),
        "group": alike(own, [term.first for term in terms]),
        "own": np.diag(own**2),
        "conversions": np.outer(converted, converted),
        "place": alike(own_edge, [(term.first in around, term.second in around) for term in terms]),
        "place and size": alike(
            own_edge,
            [(term.first in around, term.second in around, size.get((term.first, term.second))) for term in terms],
        ),
        "edge": np.diag(own_edge**2),
        "joins": alike(joined, [term.kind for term in terms]),
        "join": np.diag(joined**2),
    }
    return Prior(-_EXPECTED_SAVING * work * saves + _EXPECTED_CONVERSIONS * converted, parts)
