"""Choose: the policy for a budget, from the scores and, for a latency, in a loop with measured engines. Writes
`policy.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calib.errors import UserError
from deploy.latency.observations import latency_model
from deploy.latency.steps import LoopSettings, Outcome
from deploy.run.workspace import Workspace
from deploy.stages.cheapest import check_decidable, search_cheapest, solve_cheapest
from deploy.stages.looping import close_loop
from deploy.stages.policies import write_policy
from deploy.stages.scoring import method_of, score, static_ceilings
from smpq.files import AllocationRow, StabilityFile
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.scoring.stability import decision_stability
from smpq.solve.allocate import Ceiling, Problem, solve_or_explain
from smpq.solve.effort import Effort
from smpq.solve.quadratic import best_or_explain
from smpq.solve.search import Choice, choose, confirm


@dataclass(frozen=True)
class Solution:
    """The chosen policy, its value, and how it was found. `ceilings` are those that it was chosen within,
    None where nothing meets the latency that was asked for.
    """

    policy: Policy
    value: float
    stop_reason: str
    ceilings: Sequence[Ceiling] | None
    path: tuple[tuple[str, float], ...] = ()
    outcome: Outcome | None = None


def solve(workspace: Workspace, budget: Budget, effort: Effort | None = None, method: str | None = None) -> Solution:
    """Choose the policy for a budget with what the run knows. Writes `policy.json` and `stability.json`.

    `method` is where scores come from (`deploy.stages.scoring.score`). Latency is predicted from the engines that this
    run has measured; UserError when it has measured none.
    """
    ceilings = static_ceilings(workspace, budget)
    limit = budget.limit("latency")
    if limit is not None:
        if not workspace.observations.engines():
            _check_timed(workspace, budget)
        model = latency_model(workspace.observations, workspace.edges, workspace.progress.say)
        float_ms = workspace.observations.float_ms()
        assert float_ms is not None  # what was measured has it
        ceilings.append(Ceiling(model.cost_model(), limit.ratio(float_ms)))
    check_possible(workspace, ceilings)
    check_decidable(workspace, budget)
    scores = score(workspace, budget, method)
    effort = effort or workspace.settings.spending
    if budget.loss is None:
        solution = _solved(workspace, scores, ceilings, effort)
    else:
        method_of(scores).check_latency()
        policy = solve_cheapest(workspace, budget, scores, effort)
        solution = _cheapest(workspace, policy, "the cheapest that loses little enough")
    write_policy(workspace, solution.policy, budget)
    write_stability(workspace, scores, solution)
    return solution


def score_for(workspace: Workspace, budget: Budget, method: str | None = None) -> Scores:
    """Return the scores to search with. UserError before that when no policy is within the budget, when the samples
    cannot decide about it, or when a latency is asked for and engines of the target cannot be timed.
    """
    check_reachable(workspace, budget)
    check_decidable(workspace, budget)
    scores = score(workspace, budget, method)
    if budget.limit("latency") is not None or budget.loss is not None:
        method_of(scores).check_latency()
    return scores


def search(
    workspace: Workspace,
    budget: Budget,
    scores: Scores | None = None,
    effort: Effort | None = None,
    loop: LoopSettings | None = None,
) -> Solution:
    """Choose the policy for a budget; a latency budget closes the loop over measured engines. Writes `policy.json`.

    `scores` are those of `score_for`, which is called without them. `write_stability` says how sure they are of what
    came out; that takes seconds, so it is for the last of several searches.
    """
    scores = scores or score_for(workspace, budget)
    effort = effort or workspace.settings.spending
    if budget.loss is not None:
        policy, reason, outcome = search_cheapest(workspace, budget, scores, effort, loop)
        solution = _cheapest(workspace, policy, reason, outcome)
    elif budget.limit("latency") is None:
        solution = _solved(workspace, scores, static_ceilings(workspace, budget), effort)
    else:
        outcome, limit = close_loop(workspace, budget, scores, effort, loop)
        priced = Ceiling(outcome.model.cost_model(), limit)
        ceilings = [priced, *static_ceilings(workspace, budget)] if outcome.met else None
        judged = any(each.unseen is not None for each in outcome.finalists)
        path = (("best finalist on other samples", outcome.value),) if judged else ()
        solution = Solution(outcome.policy, outcome.value, outcome.stop_reason, ceilings, path, outcome)
    write_policy(workspace, solution.policy, budget)
    return solution


def _solved(workspace: Workspace, scores: Scores, ceilings: Sequence[Ceiling], effort: Effort) -> Solution:
    if method_of(scores).searched:
        return _choose(workspace, scores, ceilings, effort)
    return _allocate(workspace, scores, ceilings)


def _cheapest(workspace: Workspace, policy: Policy, reason: str, outcome: Outcome | None = None) -> Solution:
    """Return the solution that is the cheapest policy. How sure the scores are of it is told for its own size."""
    size = workspace.costs["size"]
    own_size = Ceiling(size, size.total(policy) * (1 + 1e-9))
    return Solution(policy, workspace.evaluator(policy), reason, [own_size], outcome=outcome)


def write_stability(workspace: Workspace, scores: Scores, solution: Solution) -> None:
    """Write how often each layer gets each format when the scores are resampled, and of scores with pairs whether their
    own plan is proven the best within the ceilings: `stability.json`. Nothing where the latency is out of reach.
    """
    if solution.ceilings is None:
        return
    stability = decision_stability(scores, workspace.space, solution.ceilings, workspace.settings.seed)
    row = None
    if scores.pairs:
        with workspace.progress.step("prove the plan of the scores"):
            answer = best_or_explain(Problem(workspace.space, scores.objective(), solution.ceilings))
        workspace.progress.say(f"plan of the scores, pairs of layers included: {answer}")
        row = AllocationRow(value=answer.value, bound=answer.value + answer.gap, where=answer.where)
    key = solution.policy.key()
    workspace.run.write(
        stability.to_file(key)
        if stability is not None
        else StabilityFile(policy=key, resamples=0, allocation=row, undecided=(), frequencies={})
    )


def check_reachable(workspace: Workspace, budget: Budget) -> None:
    """Raise UserError when no policy is within the budget, or when a latency is asked for and engines of the target
    cannot be timed.
    """
    check_possible(workspace, static_ceilings(workspace, budget))
    _check_timed(workspace, budget)


def _check_timed(workspace: Workspace, budget: Budget) -> None:
    if budget.limit("latency") is not None and workspace.not_measurable is not None:
        raise UserError(f"{workspace.not_measurable}; or give a budget on size, avg_bits or bops")


def check_possible(workspace: Workspace, ceilings: Sequence[Ceiling]) -> None:
    """Raise UserError for an impossible budget, before anything is scored or measured for it."""
    if ceilings:
        nothing = {group: dict.fromkeys(row, 0.0) for group, row in workspace.space.formats.items()}
        solve_or_explain(Problem(workspace.space, nothing, ceilings))


def _choose(workspace: Workspace, scores: Scores, ceilings: Sequence[Ceiling], effort: Effort) -> Solution:
    with workspace.progress.step("choose the policy"):
        choice: Choice = choose(
            workspace.evaluator,
            workspace.space,
            scores.starts(),
            ceilings,
            effort,
            advance=workspace.progress.say,
            folds=workspace.evaluator.folds,
            enough=workspace.progress.enough,
        )
        if workspace.unseen is not None:
            choice = confirm(choice, workspace.evaluator, workspace.unseen)
    return Solution(choice.policy, choice.value, "no change of the policy improves the value", ceilings, choice.path)


def _allocate(workspace: Workspace, scores: Scores, ceilings: Sequence[Ceiling]) -> Solution:
    """The scores decide alone, as their method wants it."""
    policy = method_of(scores).policy(workspace.space, scores, ceilings)
    return Solution(
        policy, workspace.evaluator(policy), f"the best policy for the scores ({scores.estimator})", ceilings
    )
