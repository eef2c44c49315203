"""Close the loop: engines are measured until one meets the latency budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from calib.errors import UserError
from deploy.files.loop import SLOWEST
from deploy.latency.cheapest import CheapestLoop
from deploy.latency.history import Search
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, LoopSettings, Outcome
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.stages.scoring import static_ceilings
from deploy.targets.offers import may_fail
from smpq.problem.budget import Budget, Limit
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.solve.effort import Effort
from smpq.value.negligible import negligible_loss

_ROUNDS_IN_LOOP = 1
_UNNOTICED = 10
"""So many times `Effort.gain` of a loss that is negligible is a gain that nobody notices: at the usual effort 0.001
nats, 0.03 points of ResNet-20's top-1.
"""


def close_loop(
    workspace: Workspace,
    budget: Budget,
    scores: Scores,
    effort: Effort,
    settings: LoopSettings | None = None,
    allowed: Callable[[Policy], bool] | None = None,
    decided_on: str | None = None,
) -> tuple[Outcome, float]:
    """Search for the most valuable policy whose engine is measured to meet the latency budget. Writes `loop.json`. A
    search there that has ended, and was not overruled, is not made again.

    With `allowed`, which says what loses little enough, the fastest of what is allowed is searched; `decided_on` is the
    hash of the batches that say it. Also returns the limit as a ratio to the float engine. Where the budget has none on
    the latency it is 1, or `SLOWEST` where the float model exceeds another limit.
    """
    export_float_model(workspace)
    bench, observations = workspace.bench, workspace.observations
    machine = bench.machine
    if budget.limit("latency") is not None or allowed is None:
        float_ms = None if _limit_of(budget).relative else observations.float_ms(machine) or bench.float_ms()
        limit = ratio_limit(workspace, budget, float_ms)
    else:
        reference = workspace.space.uniform(workspace.space.reference)
        within = all(each.model.total(reference) <= each.limit for each in static_ceilings(workspace, budget))
        limit = 1.0 if within else SLOWEST
    search = Search(
        workspace.run,
        workspace.space,
        str(budget),
        machine,
        limit,
        observations.all(machine),
        takes_up=True,
        decided_on=decided_on,
    )
    search.begin()
    looped = loop_for(
        workspace, budget, scores, effort, search.limit, search.observations, search.refusals, settings, allowed
    )
    if (known := search.recalled(looped)) is not None:
        return known, search.limit
    measure = search.resumed(lambda policy, again: bench.observe(policy, search.limit, again=again))
    with workspace.progress.step("close the loop"):
        outcome = looped.run(measure, workspace.progress.say, search.keep)
    workspace.progress.say(f"no more engines: {outcome.stop_reason}")
    search.end(outcome)
    return outcome, search.limit


def loop_for(
    workspace: Workspace,
    budget: Budget,
    scores: Scores,
    effort: Effort,
    limit: float,
    observations: Sequence[Observation],
    refusals: Sequence[Refusal],
    settings: LoopSettings | None = None,
    allowed: Callable[[Policy], bool] | None = None,
) -> LatencyLoop:
    """Return a loop that knows what was observed and refused, for a limit as a ratio to the float engine."""
    # what a round of marginals gains is less than what one more measured engine teaches about the latency
    effort = replace(
        effort, rounds=min(effort.rounds, _ROUNDS_IN_LOOP), exchanges=min(effort.exchanges, _ROUNDS_IN_LOOP)
    )
    negligible = negligible_loss(workspace.task, workspace.settings.value, workspace.traced)
    goal = Goal(
        limit,
        static_ceilings(workspace, budget),
        scores.starts(),
        effort,
        workspace.evaluator.folds,
        workspace.progress.enough,
        # how much faster an engine can be that loses little enough is another question
        unnoticed=_UNNOTICED * effort.gain * negligible if allowed is None else 0.0,
    )
    kind = LatencyLoop if allowed is None else partial(CheapestLoop, allowed=allowed)
    return kind(
        workspace.space,
        workspace.edges,
        workspace.evaluator,
        goal,
        observations,
        settings or LoopSettings(seed=workspace.settings.seed),
        refusals,
        workspace.unseen,
        may_fail(workspace.target, workspace.space, workspace.settings.batch),
    )


def ratio_limit(workspace: Workspace, budget: Budget, float_ms: float | None) -> float:
    """Return the limit as a ratio to the float engine, whose time is `float_ms` where it is known."""
    limit = _limit_of(budget)
    if limit.relative:
        return limit.value
    if float_ms is None:
        raise UserError(
            f"{limit} is in milliseconds, and the float engine's are not known yet: give a share of them, as "
            "latency=0.7x"
        )
    workspace.progress.say(f"the float engine takes {float_ms:.4g} ms: {limit} is {limit.ratio(float_ms):.3f}x of it")
    return limit.ratio(float_ms)


def _limit_of(budget: Budget) -> Limit:
    """Return the limit on latency; UserError when there is none."""
    limit = budget.limit("latency")
    if limit is None:
        raise UserError("the loop needs a latency budget, as in latency=0.7x")
    return limit
