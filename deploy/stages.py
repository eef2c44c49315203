"""The stages of a run: each reads what the earlier ones left in the run directory and adds its own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calib.errors import UserError
from deploy.engines import FLOAT, MIXED, Engines, engine_names
from deploy.export import export_float
from deploy.finetuning import tuned, version_key
from deploy.latency import Observation, neighbours
from deploy.loop import LatencyLoop, LoopSettings, Outcome, Step
from deploy.lower import lower
from deploy.observations import keep_observation, latency_model, read_observations
from deploy.prepare import Prepared
from deploy.verify import verify as verify_stages
from smpq.allocate import Ceiling, Problem, solve_or_explain
from smpq.budget import Budget
from smpq.policy import Policy
from smpq.scores import Scores
from smpq.search import Choice, Effort, choose, confirm
from smpq.shapley import Stopping, estimate
from smpq.stability import UntilStable, decision_stability

FLOAT_MODEL = "model.float.onnx"
_CONTEXT_SPREAD = 0.15
_ROUNDS_IN_LOOP = 1


@dataclass(frozen=True)
class Solution:
    """The chosen policy, its value, and how it was found."""

    policy: Policy
    value: float
    stop_reason: str
    path: tuple[tuple[str, float], ...] = ()
    outcome: Outcome | None = None


def score(prepared: Prepared, budget: Budget | None = None) -> Scores:
    """Estimate the contributions, or read them when the run has them. Writes `scores.json` and `space.json`.

    A budget on bits or size only says where contexts are drawn; the scores serve every other budget too.
    """
    run, settings = prepared.run, prepared.settings
    write_space(prepared)
    if run.has("scores.json"):
        scores = Scores.from_json(run.read_json("scores.json"), prepared.space)
        prepared.progress.say(f"scores: {scores.permutations} permutations, read from {run.file('scores.json')}")
        return scores
    bits = _context_bits(prepared, budget)
    evaluator = prepared.evaluator
    evaluations = settings.spending.scoring
    stable = UntilStable(prepared.space, static_ceilings(prepared, budget), settings.seed) if budget and settings.stable else None
    with prepared.progress.bar("score", evaluations or prepared.space.moves()) as advance:
        scores = estimate(
            evaluator,
            prepared.space,
            Stopping(evaluations, settings.precision),
            settings.seed,
            bits,
            lambda _: advance(),
            settings.value,
            stable,
        )
    run.write_json("scores.json", scores.to_json())
    return scores


def write_space(prepared: Prepared) -> None:
    """Write what may be chosen, what was refused and why, and what each choice costs."""
    groups = prepared.space.groups
    record = {
        "schema": 1,
        "groups": {
            group.name: {
                "units": [unit.to_json() for unit in group.units],
                "formats": [str(chosen) for chosen in prepared.space.formats[group.name]],
            }
            for group in groups
        },
        "reference": str(prepared.space.reference),
        "policies": prepared.space.size(),
        "skipped": [vars(entry) for entry in prepared.skipped],
        "refused": prepared.refused,
    }
    prepared.run.write_json("space.json", record)
    costs = {
        name: {
            "fixed": model.fixed,
            "float_total": model.float_total,
            "parts": {group: {str(chosen): cost for chosen, cost in row.items()} for group, row in model.parts.items()},
        }
        for name, model in prepared.costs.items()
    }
    prepared.run.write_json("costs.json", {"schema": 1, "costs": costs})


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
        outcome = looped.run(wanted, ceilings, {"shapley": scores.values(), "one at a time": scores.alone()}, effort)
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


def export_float_model(prepared: Prepared) -> Path:
    """Write `model.float.onnx` unless it is there."""
    path = prepared.run.file(FLOAT_MODEL)
    if not path.is_file():
        with prepared.progress.step("export to ONNX"):
            export_float(prepared.traced, prepared.space.units, path)
    return path


def export(prepared: Prepared, policy: Policy) -> Path:
    """Write `model.<target>.onnx`, the plan of the policy in the form the target wants, with the fine-tuned weights if the run has any."""
    source, fine_tuned = export_float_model(prepared), tuned(prepared, policy)
    plan = prepared.plan(policy) if fine_tuned is None else fine_tuned.plan
    if fine_tuned is not None:
        source = fine_tuned.export_source()
    path = prepared.run.file(engine_names(prepared.target).model)
    with prepared.progress.step("insert quantisers"):
        report = lower(source, plan, prepared.space.units, prepared.target, path, prepared.settings.batch)
    prepared.run.write_json("export.json", {"policy": version_key(prepared, policy), **report.to_json()})
    return path


def build(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Build the engines of the exported model and of the float one; check every unit's kernel. Writes `build.json`."""
    export_float_model(prepared)
    _needs_export(prepared, policy)
    with prepared.progress.step("build the engines"):
        records, kernels = Engines(prepared).build(policy)
    record = {
        "schema": 1,
        "policy": version_key(prepared, policy),
        "engines": records,
        "kernels": {kernel.path: {"kernel": kernel.kernel, "agrees": kernel.agrees} for kernel in kernels},
    }
    prepared.run.write_json("build.json", record)
    return record


def measure(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Time the engine of the policy against the float engine. Writes `latency.json` and adds to `measurements.json`."""
    _needs_build(prepared, policy)
    predicted, interval = None, None
    if read_observations(prepared):
        predicted, error = latency_model(prepared).predict(policy)
        interval = [predicted - 1.96 * error, predicted + 1.96 * error]
    with prepared.progress.step("measure the engine"):
        measurement = Engines(prepared).measure()
    timing, baseline = measurement.timings[MIXED], measurement.timings[FLOAT]
    record = {
        "schema": 1,
        "policy": version_key(prepared, policy),
        "ratio": timing.ratio,
        "interval": list(timing.ratio_interval),
        "engine_ms": timing.latency_ms,
        "float_ms": baseline.latency_ms,
        "predicted_ratio": predicted,
        "predicted_interval": interval,
        "clock": measurement.clock,
        "rounds": measurement.protocol.rounds,
        "batch": prepared.settings.batch,
        "measurement": measurement.to_json(),
    }
    prepared.run.write_json("latency.json", record)
    low, high = timing.ratio_interval
    keep_observation(prepared, Observation(policy, timing.ratio, (high - low) / (2 * 1.96)), baseline.latency_ms)
    return record


def verify(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Run the evaluation data through every stage. Writes `verify.json`."""
    _needs_export(prepared, policy)
    _needs_build(prepared, policy)
    record = {"policy": version_key(prepared, policy), **verify_stages(prepared, policy).to_json()}
    prepared.run.write_json("verify.json", record)
    return record


def static_ceilings(prepared: Prepared, budget: Budget) -> list[Ceiling]:
    """Return the limits on costs that need no measurement."""
    return [
        Ceiling(prepared.costs[limit.cost], limit.absolute(prepared.costs[limit.cost].float_total))
        for limit in budget.limits
        if limit.cost != "latency"
    ]


def _needs_export(prepared: Prepared, policy: Policy) -> None:
    model = prepared.run.file(engine_names(prepared.target).model)
    if not model.is_file():
        raise UserError(f"{model} is missing: make it with smpq export")
    if not prepared.run.made_for("export.json", version_key(prepared, policy)):
        raise UserError(f"{model} is not of the policy in policy.json and its fine-tuning: use smpq export first")


def _needs_build(prepared: Prepared, policy: Policy) -> None:
    if not prepared.run.made_for("build.json", version_key(prepared, policy)):
        raise UserError(
            "this run has no engine of the policy in policy.json and its fine-tuning: use smpq export and smpq build first"
        )


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
    starts = {"shapley": scores.values(), "one at a time": scores.alone()}
    with prepared.progress.step("choose the policy"):
        choice: Choice = choose(prepared.evaluator, prepared.space, starts, ceilings, effort, advance=prepared.progress.say)
        if prepared.unseen is not None:
            choice = confirm(choice, prepared.evaluator, prepared.unseen)
    return Solution(choice.policy, choice.value, "no change of the policy improves the value", choice.path)


def _context_bits(prepared: Prepared, budget: Budget | None) -> tuple[float, float] | None:
    """Where the budget puts the average weight bits, 15 % either way; None when it does not say."""
    limit = budget.limit("avg_bits") if budget is not None else None
    if limit is None:
        return None
    bits = limit.absolute(prepared.costs["avg_bits"].float_total)
    return bits * (1 - _CONTEXT_SPREAD), bits * (1 + _CONTEXT_SPREAD)


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
