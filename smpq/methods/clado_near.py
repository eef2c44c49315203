"""CLADO's cross terms around the plan that is to be improved:
errors of 2 bits are too large for a model around float.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import ceilings_or_size
from smpq.methods.clado import second_order
from smpq.methods.problem import Objective, SearchProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smpq.problem.policy import Policy, Space
    from smpq.scoring.cross_terms import CrossTerms
    from smpq.solve.allocate import Ceiling, Move, Values

_SHARE_OF_SIZE = 0.3
_ROUNDS = 2


@method(
    "clado-near",
    paper="this project, after CLADO, Deng et al. DAC 2025 (arXiv 2307.05657)",
    cost="as CLADO, up to two times",
)
def clado_near(problem: SearchProblem) -> Objective:
    """Single moves and pairs of them around a plan within the budget, to be trusted near it alone.

    It begins with the plan of single moves against the float model; without a budget that is known, at 30 % of the way
    from the smallest model to the largest. A round measures the pairs, solves within fewer and fewer changes of the
    plan, and evaluates what is found; the next one is around the best of that. The scores are those of the last round,
    to be trusted within as many changes as its best plan has. A plan is no minimum of the loss, so the model is not
    made convex.
    """
    from smpq.scoring.cross_terms import (
        all_pairs,
        measure_pairs,
        measure_singles,
        moves_from,
        parts_within,
        recentred,
    )
    from smpq.solve.allocate import Neighbourhood

    space, evaluator, ceilings = problem.space, problem.evaluator, ceilings_or_size(problem, _SHARE_OF_SIZE)
    folds = evaluator.folds or (evaluator,)
    single = moves_from(space, space.uniform(space.reference))
    alone = measure_singles(evaluator, single, space.uniform(space.reference))
    centre, spent = _plan_of(problem, alone, ceilings), len(single)
    if not problem.limits.evaluations:
        return second_order(problem, alone, alone, {}, evaluations=spent)
    notes: list[str] = []
    for number in range(_ROUNDS):
        pairs = all_pairs(moves_from(space, centre))
        parts = parts_within(problem.limits.evaluations, len(pairs) * _ROUNDS, len(folds))
        with problem.progress.bar(f"pairs, round {number + 1}", len(pairs) * parts) as advance:
            found = measure_pairs(folds, pairs, centre, parts, advance, problem.progress.enough)
        better, changes, tried = _improved(problem, centre, found, ceilings)
        around, spent = centre, spent + found.evaluations + tried
        notes.append(
            f"round {number + 1}: {len(found.pairs)} of {len(pairs)} pairs on {parts} of {len(folds)} parts of the "
            f"samples, around a plan of value {evaluator(centre):.4g}; "
            f"the best plan near it has {evaluator(better):.4g}"
        )
        if better == centre or problem.progress.enough():
            break
        centre = better
    float_or_plan = {
        group: {space.reference if space.reference in row else around[group]: 1.0}
        for group, row in space.formats.items()
    }
    values, terms = recentred(space, found.singles, found.pairs, float_or_plan)
    objective = second_order(
        problem, values, alone, terms, evaluations=spent, cut_short=found.cut_short, notes=tuple(notes)
    )
    return replace(objective, near=Neighbourhood(around, changes))


def _plan_of(problem: SearchProblem, values: Mapping[Move, float], ceilings: tuple[Ceiling, ...]) -> Policy:
    """Return the best plan for values of moves alone."""
    from smpq.solve.allocate import Problem, solve_or_explain

    return solve_or_explain(Problem(problem.space, _by_group(problem.space, values), ceilings))


def _by_group(space: Space, values: Mapping[Move, float]) -> Values:
    return {group: {chosen: values.get((group, chosen), 0.0) for chosen in row} for group, row in space.formats.items()}


def _improved(
    problem: SearchProblem, centre: Policy, found: CrossTerms, ceilings: tuple[Ceiling, ...]
) -> tuple[Policy, int, int]:
    """Return the best plan within fewer and fewer changes by its measured value, its changes,
    and how many were tried.
    """
    from smpq.solve.allocate import Neighbourhood, PairedValues, Problem
    from smpq.solve.quadratic import solve_pairs

    space, rows = problem.space, _by_group(problem.space, found.singles)
    candidates: dict[str, tuple[Policy, int]] = {}
    changes = max(2, len(space.groups) // 2)
    while changes >= 1:
        near = Neighbourhood(centre, changes)
        answer = solve_pairs(Problem(space, PairedValues(rows, found.pairs, near), ceilings))
        if answer is not None and answer.policy != centre:
            candidates.setdefault(answer.policy.key(), (answer.policy, changes))
        changes = min(changes - 1, changes * 2 // 3)
    policies = [centre, *(policy for policy, _ in candidates.values())]
    values = problem.evaluator.many(policies)
    best = policies[values.index(max(values))]
    return best, candidates.get(best.key(), (best, 1))[1], len(candidates)
