"""Shapley values for what a move is worth on average, cross terms near the plan where they may matter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import ceilings_or_size
from smpq.methods.problem import Objective, SearchProblem
from smpq.methods.shapley import shapley

if TYPE_CHECKING:
    from smpq.problem.policy import Policy
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Move

_SHARE_OF_SIZE = 0.3


@method(
    "hybrid",
    paper="this project, after CLADO, Deng et al. DAC 2025 (arXiv 2307.05657)",
    cost="one for each of 400 evaluations (--evaluations), half of them on pairs",
)
def hybrid(problem: SearchProblem) -> Objective:
    """Shapley values of moves, and cross terms of the pairs that may matter most around the plan of these values.

    Half of --evaluations go into walks, half into pairs. A loss of second order is a squared length, so two moves with
    single losses L(i) and L(j) have a cross term of at most 2 sqrt(L(i) L(j)) (Cauchy-Schwarz): the pairs with the
    largest bound are measured, each on one part of the samples, and the others count as 0. The single losses are those
    of the walks' first pass, as changes against the plan; without a budget that is known the plan is at 30 % of the way
    from the smallest model to the largest. A pair of which one is the plan's own move is worth 0: the Shapley values,
    means over contexts near the budget, hold what the plan does to a single move.
    """
    from smpq.scoring.cross_terms import all_pairs, measure_pairs, moves_from
    from smpq.scoring.widest import doubt_about_widest
    from smpq.solve.allocate import Neighbourhood, Problem, solve_or_explain

    space, evaluator, limits = problem.space, problem.evaluator, problem.limits
    linear = shapley(replace(problem, limits=replace(limits, evaluations=limits.evaluations // 2))).linear
    if not limits.evaluations:
        return Objective(linear)
    ceilings = ceilings_or_size(problem, _SHARE_OF_SIZE)
    centre = solve_or_explain(Problem(space, linear.values(), ceilings))
    every = all_pairs(moves_from(space, centre))
    most = sorted(every, key=lambda pair: -math.prod(_change(linear, centre, move) for move in pair))
    kept = set(most[: limits.evaluations - limits.evaluations // 2])
    asked = [pair for pair in every if pair in kept]
    with problem.progress.bar("pairs", len(asked)) as advance:
        found = measure_pairs(evaluator.folds or (evaluator,), asked, centre, 1, advance)
    objective = Objective(
        replace(linear, estimator="permutation and pairs of moves", evaluations=linear.evaluations + found.evaluations),
        found.pairs,
        Neighbourhood(centre, max(2, len(space.groups) // 2)),
    )
    doubt = doubt_about_widest(space, objective.scores.objective())
    note = (
        f"cross terms of {len(asked)} of {len(every)} pairs, those with the largest single changes, around the plan of "
        "the Shapley values; the others count as 0"
    )
    return replace(objective, notes=(note, *([doubt] if doubt else [])))


def _change(scores: Scores, centre: Policy, move: Move) -> float:
    group, chosen = move
    row = scores.entries[group]
    return abs(row[chosen].alone - row[centre[group]].alone)
