"""Close the loop: engines are measured until one meets the latency budget, on a device that answers, or by bundles carried to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calib.errors import UserError
from deploy.devices.bundle import read_measurements, write_bundle
from deploy.float_onnx import export_float_model
from deploy.latency.bench import Bench
from deploy.latency.loop import Goal, LatencyLoop, LoopSettings, Outcome, Proposal, Refusal, Step, upper
from deploy.latency.measure import Protocol
from deploy.latency.observations import Measured, edges, keep_measured, known_float_ms, read_observations, read_refusals
from deploy.on_device.experiment import EXPERIMENT_FILE, MEASUREMENTS_FILE
from deploy.prepare import Prepared
from deploy.stages.making import export
from deploy.stages.policies import write_policy
from deploy.stages.scoring import score, static_ceilings
from smpq.budget import Budget
from smpq.policy import Policy
from smpq.search import Effort

BUNDLE = "bundle.json"
LOOP = "loop.json"
_ROUNDS_IN_LOOP = 1
_AT_ONCE = 6
"""How many engines a bundle asks for, so that few journeys to the device are needed."""


def close_loop(prepared: Prepared, budget: Budget, effort: Effort, settings: LoopSettings | None = None) -> tuple[Outcome, float]:
    """Search for the most valuable policy whose engine is measured to meet the latency budget. Writes `loop.json`.

    Also returns the limit as a ratio to the float engine. UserError when engines of the target cannot be measured.
    """
    if prepared.not_measurable is not None:
        raise UserError(f"{prepared.not_measurable}; or give a budget on size, avg_bits or bops")
    score(prepared, budget)
    export_float_model(prepared)
    bench = Bench(prepared)
    limit = _ratio_limit(prepared, budget, known_float_ms(prepared, bench.machine) or bench.float_ms)
    looped = _loop(prepared, budget, effort, limit, bench.machine, settings)
    with prepared.progress.step("close the loop"):
        outcome = looped.run(lambda policy: bench.observe(policy, limit), prepared.progress.say)
    _write_steps(prepared, limit, outcome.steps)
    return outcome, limit


def write_next_bundle(prepared: Prepared, budget_text: str | None, directory: Path) -> dict[str, Any]:
    """Write the engines that should be measured next into `directory`, to be carried to a device that cannot be reached from here.

    The budget is that of the last bundle unless one is given. Writes `bundle.json`, which says which model is which policy. UserError when
    no other engine needs to be measured, or when the directory holds something else.
    """
    budget = Budget.from_text(budget_text or _known_bundle(prepared)["budget"])
    if directory.exists() and (
        not directory.is_dir() or (any(directory.iterdir()) and not (directory / EXPERIMENT_FILE).is_file())
    ):
        raise UserError(f"{directory} holds something else: name a new directory")
    score(prepared, budget)
    export_float_model(prepared)
    limit = _ratio_limit(prepared, budget, known_float_ms(prepared))
    looped = _loop(prepared, budget, prepared.settings.spending, limit)
    proposals = looped.ask_several(_AT_ONCE)
    if not proposals:
        raise UserError(f"no other engine needs to be measured: {looped.outcome().stop_reason}")
    bench = Bench(prepared)
    candidates = [bench.candidate(proposal.policy) for proposal in proposals]
    (directory / MEASUREMENTS_FILE).unlink(missing_ok=True)
    write_bundle(bench.experiment(candidates, Protocol(), label=str(budget)), directory)
    record = {
        "schema": 1,
        "budget": str(budget),
        "candidates": {
            candidate.name: {
                "label": proposal.label,
                "predicted": proposal.predicted,
                "predicted_interval": list(proposal.interval),
                "policy": proposal.policy.to_json(prepared.space.groups),
            }
            for candidate, proposal in zip(candidates, proposals, strict=True)
        },
    }
    prepared.run.write_json(BUNDLE, record)
    return record


def take_feedback(prepared: Prepared, measurements: Path) -> dict[str, Any]:
    """Take in what a device has measured of the last bundle. Adds to `measurements.json` and `loop.json`.

    Writes `policy.json`, the best policy so far, and its model. Returns its ratio to the float engine, whether it meets the budget, and
    how many other engines should be measured. UserError for measurements of something else.
    """
    known = _known_bundle(prepared)
    budget = Budget.from_text(known["budget"])
    found = read_measurements(measurements, prepared.fingerprint)
    proposals = _proposals(prepared, known["candidates"])
    strange = [result.name for result in found.results if result.name not in proposals]
    if strange:
        raise UserError(
            f"{measurements} has results of {strange[0]}, which is not in the last bundle of this run: measure that one"
        )
    measured = [Measured(proposals[result.name].policy, result) for result in found.results]
    verdicts = keep_measured(prepared, measured, found.machine)
    limit = _ratio_limit(prepared, budget, known_float_ms(prepared))
    steps = [_step(proposals[each.result.name], verdict, limit) for each, verdict in zip(measured, verdicts, strict=True)]
    earlier = prepared.run.read_json(LOOP, keys=["steps"])["steps"] if prepared.run.has(LOOP) else []
    _write_steps(prepared, limit, steps, earlier)
    looped = _loop(prepared, budget, prepared.settings.spending, limit)
    following = looped.ask_several(_AT_ONCE)
    outcome = looped.outcome()
    write_policy(prepared, outcome.policy, budget)
    return {
        "schema": 1,
        "ratio": outcome.observation.ratio,
        "met": outcome.met,
        "proposals": len(following),
        "stop_reason": outcome.stop_reason,
        "model": str(export(prepared, outcome.policy)),
    }


def _known_bundle(prepared: Prepared) -> dict[str, Any]:
    return prepared.run.read_json(BUNDLE, "write a bundle first with smpq bundle --budget", keys=["budget", "candidates"])


def _loop(
    prepared: Prepared,
    budget: Budget,
    effort: Effort,
    limit: float,
    machine: str | None = None,
    settings: LoopSettings | None = None,
) -> LatencyLoop:
    # what a round of marginals gains is less than what one more measured engine teaches about the latency
    effort = replace(effort, rounds=min(effort.rounds, _ROUNDS_IN_LOOP), exchanges=min(effort.exchanges, _ROUNDS_IN_LOOP))
    goal = Goal(limit, static_ceilings(prepared, budget), score(prepared, budget).starts(), effort)
    return LatencyLoop(
        prepared.space,
        edges(prepared),
        prepared.evaluator,
        goal,
        read_observations(prepared, machine),
        settings or LoopSettings(seed=prepared.settings.seed),
        read_refusals(prepared, machine),
    )


def _ratio_limit(prepared: Prepared, budget: Budget, float_ms: Any) -> float:
    """Return the limit as a ratio to the float engine, whose time is a number, a function that measures it, or not known."""
    limit = budget.limit("latency")
    if limit is None:
        raise UserError("the loop needs a latency budget, as in latency=0.7x")
    if limit.relative:
        return limit.value
    known = float_ms() if callable(float_ms) else float_ms
    if known is None:
        raise UserError(
            f"{limit} is in milliseconds, and the float engine's are not known yet: give a share of them, as latency=0.7x"
        )
    prepared.progress.say(f"the float engine takes {known:.4g} ms: {limit} is {limit.value / known:.3f}x of it")
    return float(limit.value / known)


def _proposals(prepared: Prepared, candidates: Any) -> dict[str, Proposal]:
    def proposal(entry: dict[str, Any]) -> Proposal:
        low, high = entry["predicted_interval"]
        return Proposal(entry["label"], Policy.from_json(entry["policy"], prepared.space), entry["predicted"], (low, high))

    try:
        return {name: proposal(entry) for name, entry in candidates.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{BUNDLE} is damaged ({error!r}): write the bundle again with smpq bundle") from error


def _step(proposal: Proposal, found: Any, limit: float) -> Step:
    if isinstance(found, Refusal):
        return Step(proposal, None, found, met=False)
    return Step(proposal, found, None, upper(found) <= limit)


def _write_steps(prepared: Prepared, limit: float, steps: Sequence[Step], earlier: Sequence[dict[str, Any]] = ()) -> None:
    rows = [*earlier, *map(_step_json, steps)]
    prepared.run.write_json(LOOP, {"schema": 1, "limit_ratio": limit, "steps": rows})


def _step_json(step: Step) -> dict[str, Any]:
    proposal = step.proposal
    row = {
        "label": proposal.label,
        "predicted": proposal.predicted,
        "predicted_interval": list(proposal.interval),
        "met": step.met,
        "policy": {name: str(chosen) for name, chosen in proposal.policy.formats.items()},
        "float_joins": sorted(proposal.policy.float_joins),
    }
    if step.observation is None:
        assert step.refusal is not None
        return {**row, "measured": None, "measured_interval": None, "refused": step.refusal.reason}
    ratio, error = step.observation.ratio, 1.96 * step.observation.standard_error
    return {**row, "measured": ratio, "measured_interval": [ratio - error, ratio + error], "refused": None}
