"""Choose: the policy for a budget, from the scores and, for a latency, in a loop with measured engines. Writes
`policy.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.latency.loop import LoopSettings, Outcome
from deploy.latency.observations import known_float_ms, latency_model
from deploy.run.workspace import Prepared
from deploy.stages.looping import close_loop
from deploy.stages.policies import write_policy
from deploy.stages.scoring import method_of, score, static_ceilings
from smpq.files import StabilityFile
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.scoring.stability import decision_stability
from smpq.solve.allocate import Ceiling, Problem, solve_or_explain
from smpq.solve.search import Choice, Effort, choose, confirm


@dataclass(frozen=True)
class Solution:
    """The chosen policy, its value, and how it was found."""

    policy: Policy
    value: float
    stop_reason: str
    path: tuple[tuple[str, float], ...] = ()
    outcome: Outcome | None = None


def solve(prepared: Prepared, budget: Budget, effort: Effort | None = None, method: str | None = None) -> Solution:
    """Choose the policy for a budget with what the run knows. Writes `policy.json`.

    `method` is where scores come from (`deploy.stages.scoring.score`). Latency is predicted from the engines that this
    run has measured; UserError when it has measured none.
    """
    ceilings = static_ceilings(prepared, budget)
    limit = budget.limit("latency")
    if limit is not None:
        model, float_ms = latency_model(prepared), known_float_ms(prepared)
        assert float_ms is not None  # what was measured has it
        ceilings.append(Ceiling(model.cost_model(1.0), limit.absolute(float_ms) / float_ms))
    _check_possible(prepared, ceilings)
    scores = score(prepared, budget, method)
    if method_of(scores).searched:
        solution = _choose(prepared, scores, ceilings, effort or prepared.settings.spending)
    else:
        solution = _allocate(prepared, scores, ceilings)
    write_policy(prepared, solution.policy, budget)
    write_stability(prepared, scores, ceilings, solution.policy)
    return solution


def search(
    prepared: Prepared,
    budget: Budget,
    effort: Effort | None = None,
    loop: LoopSettings | None = None,
    method: str | None = None,
) -> Solution:
    """Choose the policy for a budget; a latency budget closes the loop over measured engines. Writes `policy.json`."""
    effort = effort or prepared.settings.spending
    if budget.limit("latency") is None:
        return solve(prepared, budget, effort, method)
    _check_possible(prepared, static_ceilings(prepared, budget))
    outcome, limit = close_loop(prepared, budget, effort, loop, method)
    write_outcome(prepared, budget, outcome, limit)
    path = (("best finalist on other samples", outcome.value),) if outcome.met and prepared.unseen is not None else ()
    return Solution(outcome.policy, outcome.value, outcome.stop_reason, path, outcome)


def write_outcome(prepared: Prepared, budget: Budget, outcome: Outcome, limit: float) -> None:
    """Write `policy.json` and how sure the scores are of it; `limit` is a ratio to the float engine."""
    write_policy(prepared, outcome.policy, budget)
    if outcome.met:
        ceilings = [Ceiling(outcome.model.cost_model(1.0), limit), *static_ceilings(prepared, budget)]
        write_stability(prepared, score(prepared, budget), ceilings, outcome.policy)


def write_stability(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling], policy: Policy) -> None:
    """Write how often each layer gets each format when the scores are resampled: `stability.json`."""
    stability = decision_stability(scores, prepared.space, ceilings, prepared.settings.seed)
    prepared.run.write(
        stability.to_file(policy.key())
        if stability is not None
        else StabilityFile(policy=policy.key(), resamples=0, undecided=(), frequencies={})
    )


def _check_possible(prepared: Prepared, ceilings: Sequence[Ceiling]) -> None:
    """Raise UserError for an impossible budget, before anything is scored or measured for it."""
    if ceilings:
        nothing = {group: dict.fromkeys(row, 0.0) for group, row in prepared.space.formats.items()}
        solve_or_explain(Problem(prepared.space, nothing, ceilings))


def _choose(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling], effort: Effort) -> Solution:
    with prepared.progress.step("choose the policy"):
        choice: Choice = choose(
            prepared.evaluator, prepared.space, scores.starts(), ceilings, effort, advance=prepared.progress.say
        )
        if prepared.unseen is not None:
            choice = confirm(choice, prepared.evaluator, prepared.unseen)
    return Solution(choice.policy, choice.value, "no change of the policy improves the value", choice.path)


def _allocate(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling]) -> Solution:
    """The scores decide alone, as their method wants it."""
    policy = method_of(scores).policy(prepared.space, scores, ceilings)
    return Solution(policy, prepared.evaluator(policy), f"the best policy for the scores ({scores.estimator})")
