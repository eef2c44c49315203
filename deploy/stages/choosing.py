"""Choose: the policy for a budget, from the scores and, for a latency, in a loop with measured engines. Writes `policy.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from calib.errors import UserError
from deploy.engines import Engines
from deploy.latency import Observation, neighbours
from deploy.loop import LatencyLoop, LoopSettings, Outcome, Step
from deploy.observations import keep_observation, latency_model, read_observations
from deploy.prepare import Prepared
from deploy.stages.making import export_float_model
from deploy.stages.scoring import score, static_ceilings
from smpq.allocate import Ceiling, Problem, solve_or_explain
from smpq.budget import Budget
from smpq.policy import Policy
from smpq.scores import Scores
from smpq.search import Choice, Effort, choose, confirm
from smpq.stability import decision_stability
from smpq.supernet_scores import ESTIMATORS

_ROUNDS_IN_LOOP = 1


@dataclass(frozen=True)
class Solution:
    """The chosen policy, its value, and how it was found."""

    policy: Policy
    value: float
    stop_reason: str
    path: tuple[tuple[str, float], ...] = ()
    outcome: Outcome | None = None


def solve(prepared: Prepared, budget: Budget, effort: Effort | None = None) -> Solution:
    """Choose the policy for a budget with what the run knows. Writes `policy.json`.

    Latency is predicted from the engines that this run has measured; UserError when it has measured none.
    """
    ceilings = static_ceilings(prepared, budget)
    limit = budget.limit("latency")
    if limit is not None:
        model = latency_model(prepared)
        float_ms = float(prepared.run.read_json("measurements.json", keys=["float_ms"])["float_ms"])
        ceilings.append(Ceiling(model.cost_model(1.0), limit.absolute(float_ms) / float_ms))
    _check_possible(prepared, ceilings)
    scores = score(prepared, budget)
    if scores.estimator in ESTIMATORS.values():
        solution = _allocate(prepared, scores, ceilings)
    else:
        solution = _choose(prepared, scores, ceilings, effort or prepared.settings.spending)
    write_policy(prepared, solution.policy, budget)
    write_stability(prepared, scores, ceilings, solution.policy)
    return solution


def search(prepared: Prepared, budget: Budget, effort: Effort | None = None, loop: LoopSettings | None = None) -> Solution:
    """Choose the policy for a budget; a latency budget closes the loop over measured engines. Writes `policy.json`."""
    effort = effort or prepared.settings.spending
    limit = budget.limit("latency")
    if limit is None:
        return solve(prepared, budget, effort)
    if not prepared.target.measurable:
        raise UserError(
            f"latency cannot be measured on target {prepared.target.name} here: "
            "give a budget on size, avg_bits or bops, or use --target ort-cpu"
        )
    ceilings = static_ceilings(prepared, budget)
    _check_possible(prepared, ceilings)
    scores = score(prepared, budget)
    export_float_model(prepared)
    engines = Engines(prepared)
    known = read_observations(prepared)
    value = prepared.evaluator
    looped = LatencyLoop(
        prepared.space,
        neighbours(prepared.traced, prepared.space),
        value,
        lambda policy: _measure_and_keep(prepared, engines, policy),
        known,
        loop or LoopSettings(seed=prepared.settings.seed),
        prepared.progress.say,
    )
    if limit.relative:
        wanted = limit.value
    else:
        wanted = limit.value / engines.float_ms()
        prepared.progress.say(f"the float engine takes {engines.float_ms():.4g} ms: {limit} is {wanted:.3f}x of it")
    # what a round of marginals gains is less than what one more measured engine teaches about the latency
    effort = replace(effort, rounds=min(effort.rounds, _ROUNDS_IN_LOOP), exchanges=min(effort.exchanges, _ROUNDS_IN_LOOP))
    with prepared.progress.step("close the loop"):
        outcome = looped.run(wanted, ceilings, scores.starts(), effort)
    write_policy(prepared, outcome.policy, budget)
    if outcome.met:
        write_stability(prepared, scores, [Ceiling(outcome.model.cost_model(1.0), wanted), *ceilings], outcome.policy)
    prepared.run.write_json("loop.json", {"schema": 1, "limit_ratio": wanted, "steps": [_step_json(s) for s in outcome.steps]})
    return Solution(outcome.policy, outcome.value, outcome.stop_reason, outcome=outcome)


def read_policy(prepared: Prepared) -> Policy:
    """Read `policy.json`, which a person may have edited; UserError names what does not fit the model or the target."""
    record = prepared.run.read_json("policy.json", "make one with smpq solve")
    policy = Policy.from_json(record, prepared.space)
    for group in prepared.space.groups:
        chosen = policy[group.name]
        if chosen not in prepared.space.formats[group.name] and chosen != prepared.space.reference:
            known = ", ".join(map(str, prepared.space.formats[group.name]))
            reason = prepared.refused.get(f"{group.name}: {chosen}", "it is not in this run's list of formats")
            raise UserError(f"policy.json gives {group.name} the format {chosen}: {reason}; it may have {known}")
    return policy


def write_policy(prepared: Prepared, policy: Policy, budget: Budget) -> None:
    """Write `policy.json`, and the budget that it was chosen for."""
    prepared.run.write_json("policy.json", policy.to_json(prepared.space.groups))
    prepared.run.write_json("budget.json", {"schema": 1, "budget": str(budget)})


def write_stability(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling], policy: Policy) -> None:
    """Write how often each layer gets each format when the scores are resampled: `stability.json`."""
    stability = decision_stability(scores, prepared.space, ceilings, prepared.settings.seed)
    record = stability.to_json() if stability is not None else {"resamples": 0, "undecided": [], "frequencies": {}}
    prepared.run.write_json("stability.json", {"schema": 1, "policy": policy.key(), **record})


def _check_possible(prepared: Prepared, ceilings: Sequence[Ceiling]) -> None:
    """Raise UserError for an impossible budget, before anything is scored or measured for it."""
    if ceilings:
        nothing = {group: dict.fromkeys(row, 0.0) for group, row in prepared.space.formats.items()}
        solve_or_explain(Problem(prepared.space, nothing, ceilings))


def _measure_and_keep(prepared: Prepared, engines: Engines, policy: Policy) -> Observation:
    observation = engines.observe(policy)
    keep_observation(prepared, observation, engines.float_ms())
    return observation


def _choose(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling], effort: Effort) -> Solution:
    with prepared.progress.step("choose the policy"):
        choice: Choice = choose(
            prepared.evaluator, prepared.space, scores.starts(), ceilings, effort, advance=prepared.progress.say
        )
        if prepared.unseen is not None:
            choice = confirm(choice, prepared.evaluator, prepared.unseen)
    return Solution(choice.policy, choice.value, "no change of the policy improves the value", choice.path)


def _allocate(prepared: Prepared, scores: Scores, ceilings: Sequence[Ceiling]) -> Solution:
    """A supernet's scores decide alone: its policy is meant for training, and the value of the calibrated model is not what it is for."""
    policy = solve_or_explain(Problem(prepared.space, scores.values(), ceilings))
    return Solution(policy, prepared.evaluator(policy), f"the best policy for the scores ({scores.estimator})")


def _step_json(step: Step) -> dict[str, Any]:
    error = 1.96 * step.observation.standard_error
    return {
        "label": step.label,
        "predicted": step.predicted,
        "predicted_interval": list(step.predicted_interval),
        "measured": step.observation.ratio,
        "measured_interval": [step.observation.ratio - error, step.observation.ratio + error],
        "met": step.met,
        "policy": {name: str(chosen) for name, chosen in step.policy.formats.items()},
    }
