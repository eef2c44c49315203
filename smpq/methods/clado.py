"""CLADO: the loss to second order, with a cross term for every two moves of different layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smpq.solve.allocate import Move, Pairs


@method(
    "clado",
    paper="CLADO, Deng et al. DAC 2025 (arXiv 2307.05657)",
    cost="one for each move, and a part of one for each two moves of different layers",
)
def clado(problem: SearchProblem) -> Objective:
    """Single moves and pairs of them against the float model, made convex, as CLADO models the loss.

    G[i,i] = 2 L(i), G[i,j] = L(i,j) - L(i) - L(j), with L the run's value negated (cross entropy or KL in the paper),
    by forward passes only; G is projected on the positive semidefinite matrices, and a policy loses x' G x / 2. With
    --effort fast there are no pairs, and the scores are those of single moves. Ours: how many samples a pair is
    evaluated on follows from --evaluations, one of eight parts of them at least.
    """
    from smpq.scoring.cross_terms import all_pairs, measure_pairs, measure_singles, moves_from, parts_within
    from smpq.scoring.projection import project

    space, evaluator = problem.space, problem.evaluator
    centre = space.uniform(space.reference)
    moves, folds = moves_from(space, centre), evaluator.folds or (evaluator,)
    pairs = all_pairs(moves)
    if not problem.limits.evaluations or not pairs:
        singles = measure_singles(evaluator, moves, centre)
        return second_order(problem, singles, singles, {}, evaluations=len(moves))
    parts = parts_within(problem.limits.evaluations, len(pairs), len(folds))
    with problem.progress.bar("pairs", len(pairs) * parts) as advance:
        found = measure_pairs(folds, pairs, centre, parts, advance, problem.progress.enough)
    convex = project(found.singles, found.pairs)
    return second_order(
        problem,
        convex.singles,
        found.singles,
        convex.pairs,
        evaluations=found.evaluations,
        cut_short=found.cut_short,
        notes=(f"{len(found.pairs)} of {len(pairs)} pairs on {parts} of {len(folds)} parts of the samples; {convex}",),
    )


def second_order(
    problem: SearchProblem,
    singles: Mapping[Move, float],
    alone: Mapping[Move, float],
    pairs: Pairs,
    *,
    evaluations: int,
    cut_short: bool = False,
    notes: tuple[str, ...] = (),
) -> Objective:
    """Return the objective of a model of second order; `alone` are the single moves as they were measured."""
    from dataclasses import replace

    from smpq.scoring.stability import CUT_SHORT
    from smpq.scoring.widest import doubt_about_widest

    linear = linear_objective(
        problem,
        {move: (value,) for move, value in singles.items()},
        estimator="pairs of moves" if pairs else "one at a time",
        value_name=problem.value_name,
        evaluations=evaluations,
        stop_reason=CUT_SHORT if cut_short else "every pair" if pairs else "every move",
        alone=alone,
    ).linear
    objective = Objective(linear, pairs)
    doubt = doubt_about_widest(problem.space, objective.scores.objective())
    return replace(objective, notes=(*notes, *([doubt] if doubt else [])))
