"""Shapley values for what a move is worth on average, cross terms near the plan where they may matter."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import ceilings_or_size
from smpq.methods.problem import Objective, SearchProblem
from smpq.methods.shapley import shapley

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smpq.problem.policy import Policy
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Move

_SHARE_OF_SIZE = 0.3
_SHARE_ON_PAIRS = 4
_TRUST = 0.5
"""The share of a measured cross term that counts."""


@method(
    "hybrid",
    paper="this project, after CLADO, Deng et al. DAC 2025 (arXiv 2307.05657)",
    cost="one for each of 400 evaluations (--evaluations), a quarter of them on pairs",
)
def hybrid(problem: SearchProblem) -> Objective:
    """Shapley values of moves, and cross terms of the pairs that may matter most around the plan of these values.

    A quarter of --evaluations goes into pairs, the rest into walks: with half of 400, ResNet-20 has one walk, whose
    values are too noisy to plan by. A loss of second order is a squared length, so two moves with
    single losses L(i) and L(j) have a cross term of at most 2 sqrt(L(i) L(j)) (Cauchy-Schwarz): the pairs with the
    largest bound are measured, all on one part of the samples, and the others count as 0. The bound of two layers is
    that of their largest changes against the plan, in single losses of the walks' first pass; without a budget that is
    known the plan is at 30 % of the way from the smallest model to the largest. A Shapley value is a mean over contexts
    in which a layer is half of the time in float, which its widest format stands for, and else near the plan: the
    cross terms are written so that they add nothing to that mean, and half of each counts: what is measured on one
    part of the samples, with large errors, is too large. On random plans near 3.0 and 3.5 bits (ResNet-20, nearest
    rounding) the error of the prediction is .26 and .16 without cross terms, .33 and .15 with all of them, .24 and .12
    with half.
    """
    from smpq.scoring.cross_terms import all_pairs, measure_pairs, moves_from, recentred
    from smpq.scoring.stability import CUT_SHORT
    from smpq.scoring.widest import doubt_about_widest
    from smpq.solve.allocate import Neighbourhood, Problem, solve_or_explain

    space, evaluator, limits = problem.space, problem.evaluator, problem.limits
    share = limits.evaluations // _SHARE_ON_PAIRS
    linear = shapley(replace(problem, limits=replace(limits, evaluations=limits.evaluations - share))).linear
    if not limits.evaluations:
        return Objective(linear)
    ceilings = ceilings_or_size(problem, _SHARE_OF_SIZE)
    centre = solve_or_explain(Problem(space, linear.values(), ceilings))
    every = all_pairs(moves_from(space, centre))
    asked = _screened(linear, centre, every, share)
    with problem.progress.bar("pairs", len(asked)) as advance:
        found = measure_pairs(evaluator.folds[-1:] or (evaluator,), asked, centre, 1, advance, problem.progress.enough)
    halves = {
        group: {max(row): 1.0} if centre[group] == max(row) else {max(row): 0.5, centre[group]: 0.5}
        for group, row in space.formats.items()
    }
    half = {pair: _TRUST * value for pair, value in found.pairs.items()}
    _, pairs = recentred(space, found.singles, half, halves)
    objective = Objective(
        replace(
            linear,
            estimator="permutation and pairs of moves",
            evaluations=linear.evaluations + found.evaluations,
            stop_reason=CUT_SHORT if found.cut_short else linear.stop_reason,
        ),
        pairs,
        Neighbourhood(centre, max(2, len(space.groups) // 2)),
    )
    doubt = doubt_about_widest(space, objective.scores.objective())
    note = (
        f"cross terms of {len(found.pairs)} of {len(every)} pairs, those of layers with the largest single changes, "
        "around the plan of the Shapley values; the others count as 0"
    )
    return replace(objective, notes=(note, *([doubt] if doubt else [])))


def _screened(scores: Scores, centre: Policy, pairs: Sequence[tuple[Move, Move]], most: int) -> list[tuple[Move, Move]]:
    """Return the pairs of the layers with the largest bounds, all pairs of two layers or none; of two at least."""
    bounds: dict[tuple[str, str], float] = defaultdict(float)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for one, other in pairs:
        layers = one[0], other[0]
        bounds[layers] = max(bounds[layers], _change(scores, centre, one) * _change(scores, centre, other))
        counts[layers] += 1
    kept: set[tuple[str, str]] = set()
    for layers in sorted(bounds, key=lambda each: -bounds[each]):
        most -= counts[layers]
        if most < 0 and kept:
            break
        kept.add(layers)
    return [(one, other) for one, other in pairs if (one[0], other[0]) in kept]


def _change(scores: Scores, centre: Policy, move: Move) -> float:
    group, chosen = move
    row = scores.entries[group]
    return abs(row[chosen].alone - row[centre[group]].alone)
