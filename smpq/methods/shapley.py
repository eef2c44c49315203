"""Shapley values of formats by paired walks (`smpq.scoring.shapley`): the method that this project began with."""

from __future__ import annotations

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem

_CONTEXT_SPREAD = 0.15


@method(
    "shapley",
    paper="this project, after Kang et al. IJCAI 2025 (arXiv 2508.03002) and Castro et al. 2009",
    cost="one for each of 400 evaluations (--evaluations)",
)
def shapley(problem: SearchProblem) -> Objective:
    """Shapley values of the calibrated model's formats, from paired walks; nothing is trained.

    A budget on the average bits says where contexts are drawn; the scores serve every other budget too.
    """
    from smpq.scoring.shapley import ScoringLimits, estimate
    from smpq.scoring.stability import UntilStable

    limits = problem.limits
    stable = UntilStable(problem.space, problem.ceilings, problem.seed) if limits.stable else None
    evaluator = problem.evaluator
    with problem.progress.bar("score", limits.evaluations or problem.space.moves()) as advance:
        scores = estimate(
            evaluator,
            problem.space,
            ScoringLimits(limits.evaluations, limits.precision),
            problem.seed,
            _context_bits(problem),
            lambda _: advance(),
            problem.value_name,
            stable,
        )
    return Objective(scores)


def _context_bits(problem: SearchProblem) -> tuple[float, float] | None:
    """Where the budget puts the average weight bits, 15 % either way; None when it does not say."""
    bits = next((ceiling.limit for ceiling in problem.ceilings if ceiling.model.name == "avg_bits"), None)
    return None if bits is None else (bits * (1 - _CONTEXT_SPREAD), bits * (1 + _CONTEXT_SPREAD))
