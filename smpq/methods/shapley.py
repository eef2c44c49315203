"""Shapley values of formats by paired walks (`smpq.scoring.shapley`): the method that this project began with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import ceilings_or_size
from smpq.methods.problem import Objective, SearchProblem

if TYPE_CHECKING:
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling
    from smpq.value.evaluate import Evaluator

_CONTEXT_SPREAD = 0.15
_SHARES_OF_SIZE = (0.1, 0.3, 0.6)


@method(
    "shapley",
    paper="this project, after Kang et al. IJCAI 2025 (arXiv 2508.03002) and Castro et al. 2009",
    cost="one for each of 400 evaluations (--evaluations)",
)
def shapley(problem: SearchProblem) -> Objective:
    """Shapley values of the calibrated model's formats, from paired walks; nothing is trained.

    A budget on the average bits says where contexts are drawn; the scores serve every other budget too. They are
    enough once more of them are expected to gain little in the policy that is chosen.
    """
    return Objective(paired_walks(problem, problem.evaluator, problem.negligible_loss))


def paired_walks(problem: SearchProblem, evaluator: Evaluator, negligible: float = 0.0) -> Scores:
    """Return the Shapley values of the formats by what `evaluator` says of policies, of which nobody notices a loss
    that is `negligible`.
    """
    from smpq.scoring.shapley import ScoringLimits, estimate
    from smpq.scoring.stability import UntilSettled

    limits = problem.limits
    settled = UntilSettled(
        problem.space, _budgets(problem), limits.gain, problem.seed, problem.progress.enough, negligible
    )
    with problem.progress.bar("score", limits.evaluations or problem.space.moves()) as advance:
        return estimate(
            evaluator,
            problem.space,
            ScoringLimits(limits.evaluations, limits.precision),
            problem.seed,
            _context_bits(problem),
            lambda _: advance(),
            problem.value_name,
            settled,
            evaluator.folds,
        )


def _context_bits(problem: SearchProblem) -> tuple[float, float] | None:
    """Where the budget puts the average weight bits, 15 % either way; None when it does not say."""
    bits = next((ceiling.limit for ceiling in problem.ceilings if ceiling.model.name == "avg_bits"), None)
    return None if bits is None else (bits * (1 - _CONTEXT_SPREAD), bits * (1 + _CONTEXT_SPREAD))


def _budgets(problem: SearchProblem) -> list[tuple[Ceiling, ...]]:
    """Return the budget that is asked for; where it sets no limit that is known, as for a latency, some on the size."""
    shares = _SHARES_OF_SIZE[:1] if problem.ceilings else _SHARES_OF_SIZE
    return [ceilings_or_size(problem, share) for share in shares]
