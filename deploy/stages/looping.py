"""Close the loop: engines are measured until one meets the latency budget.

The device answers over a connection, or measures bundles that a person copies to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from calib.errors import UserError
from calib.files.storage import Record
from deploy.devices.bundle import keep_asked, read_results, write_bundle
from deploy.files.loop import SLOWEST, BundleFile, CandidateRow
from deploy.latency.cheapest import CheapestLoop
from deploy.latency.history import Search
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, LoopSettings, Outcome, Proposal, Step
from deploy.lowering.onnx_files import sha256
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import DEVICE, Workspace
from deploy.runner.experiment import EXPERIMENT_FILE, RESULTS_FILE
from deploy.runner.product import ENGINES_DIRECTORY
from deploy.stages.making import export
from deploy.stages.policies import write_policy
from deploy.stages.scoring import method_of, score, static_ceilings
from deploy.targets.offers import may_fail
from smpq.files import Interval
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
_AT_ONCE = 6
"""Engines of one bundle. More of them mean fewer journeys to the device."""


class Feedback(Record, frozen=True, kw_only=True):
    """What the measurements of a bundle come to: the best policy's ratio to the float engine, whether it meets the
    budget, and its model.

    `proposals` counts the engines that should be measured next. `engine` is the directory of the best policy's plan,
    beside the measurements on the device; None where these do not hold it.
    """

    ratio: float
    met: bool
    proposals: int
    stop_reason: str
    model: str
    engine: str | None


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
        limit = _ratio_limit(workspace, budget, float_ms)
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
    looped = _loop(
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


def write_next_bundle(workspace: Workspace, budget_text: str | None, directory: Path) -> BundleFile:
    """Write the engines to measure next into `directory`, for a device without a network connection.

    The budget is that of the last bundle unless one is given. Writes `bundle.json`, which says which model is which
    policy. UserError when no other engine needs to be measured, or when the directory holds something else.
    """
    budget = Budget.from_text(budget_text or _known_bundle(workspace).budget)
    if directory.exists() and (
        not directory.is_dir() or (any(directory.iterdir()) and not (directory / EXPERIMENT_FILE).is_file())
    ):
        raise UserError(f"{directory} holds something else: name a new directory")
    if budget.loss is not None:
        raise UserError(f"{budget.loss} needs a device that answers: use smpq run, or bundle engines for a latency")
    scores = score(workspace, budget)
    method_of(scores).check_latency()
    export_float_model(workspace)
    limit = _ratio_limit(workspace, budget, workspace.observations.float_ms())
    looped = _known_loop(workspace, budget, scores, limit)
    proposals = looped.ask_several(_AT_ONCE)
    if not proposals:
        raise UserError(f"no other engine needs to be measured: {looped.outcome().stop_reason}")
    candidates = [workspace.candidates.candidate(proposal.policy) for proposal in proposals]
    (directory / RESULTS_FILE).unlink(missing_ok=True)
    experiment = workspace.bench.experiment(candidates, label=str(budget))
    write_bundle(experiment, directory)
    keep_asked(experiment, workspace.run.file(DEVICE))
    workspace.run.write(
        BundleFile(
            budget=str(budget),
            candidates={
                candidate.name: CandidateRow(
                    label=proposal.label,
                    predicted=proposal.predicted,
                    predicted_interval=Interval(*proposal.interval),
                    predicted_from=proposal.predicted_from,
                    policy=proposal.policy.to_file(workspace.space.groups),
                )
                for candidate, proposal in zip(candidates, proposals, strict=True)
            },
        )
    )
    return workspace.run.read(BundleFile)


def take_feedback(workspace: Workspace, measurements: Path) -> Feedback:
    """Take in what a device has measured of the last bundle. Adds to `observations.json` and `loop.json`.

    Writes `policy.json`, the best policy so far, and its model. Returns its ratio to the float engine, whether it meets
    the budget, and how many other engines should be measured. UserError for measurements of something else.
    """
    known = _known_bundle(workspace)
    budget = Budget.from_text(known.budget)
    found = read_results(measurements, workspace.run.file(DEVICE))
    proposals = _proposals(workspace, known)
    strange = [result.name for result in found.results if result.name not in proposals]
    if strange:
        raise UserError(
            f"{measurements} has results of {strange[0]}, which is not in the last bundle of this run: measure that one"
        )
    observations, machine = workspace.observations, found.machine
    before = observations.all(machine)
    verdicts = observations.keep([(proposals[result.name].policy, result) for result in found.results], machine)
    limit = _ratio_limit(workspace, budget, observations.float_ms(machine))
    steps = [
        _step(proposals[result.name], verdict, limit) for result, verdict in zip(found.results, verdicts, strict=True)
    ]
    search = Search(workspace.run, workspace.space, str(budget), machine, limit, before)
    scores = score(workspace, budget)
    method_of(scores).check_latency()
    looped = _known_loop(workspace, budget, scores, limit, machine)
    following = looped.ask_several(_AT_ONCE)
    outcome = looped.outcome()
    search.add(steps)
    search.end(outcome)
    write_policy(workspace, outcome.policy, budget)
    model = export(workspace, outcome.policy)
    name = sha256(model)[:16]
    return Feedback(
        ratio=outcome.observation.ratio,
        met=outcome.met,
        proposals=len(following),
        stop_reason=outcome.stop_reason,
        model=str(model),
        engine=f"{ENGINES_DIRECTORY}/{name}"
        if any(each.name == name and each.plan_sha256 for each in found.results)
        else None,
    )


def _known_bundle(workspace: Workspace) -> BundleFile:
    return workspace.run.read(BundleFile)


def _known_loop(
    workspace: Workspace, budget: Budget, scores: Scores, limit: float, machine: str | None = None
) -> LatencyLoop:
    """Return a loop that knows what `machine` has measured, or else the last one that did."""
    known, effort = workspace.observations, workspace.settings.spending
    return _loop(workspace, budget, scores, effort, limit, known.engines(machine), known.refusals(machine))


def _loop(
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


def _limit_of(budget: Budget) -> Limit:
    """Return the limit on latency; UserError when there is none."""
    limit = budget.limit("latency")
    if limit is None:
        raise UserError("the loop needs a latency budget, as in latency=0.7x")
    return limit


def _ratio_limit(workspace: Workspace, budget: Budget, float_ms: float | None) -> float:
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


def _proposals(workspace: Workspace, bundle: BundleFile) -> dict[str, Proposal]:
    with workspace.run.about(BundleFile):
        return _proposed(workspace, bundle)


def _proposed(workspace: Workspace, bundle: BundleFile) -> dict[str, Proposal]:
    return {
        name: Proposal(
            row.label,
            Policy.from_file(row.policy, workspace.space),
            row.predicted,
            (row.predicted_interval.low, row.predicted_interval.high),
            row.predicted_from,
        )
        for name, row in bundle.candidates.items()
    }


def _step(proposal: Proposal, found: Observation | Refusal, limit: float) -> Step:
    if isinstance(found, Refusal):
        return Step(proposal, None, found, met=False)
    return Step(proposal, found, None, found.upper <= limit)
