"""Bundles for a device that this machine cannot reach: the engines to measure next are carried there, and what it has
measured back.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from calib.errors import UserError
from calib.files.storage import Record
from deploy.devices.bundle import keep_asked, note_taken, read_results, was_taken, write_bundle
from deploy.devices.known import keep_results, known_of
from deploy.devices.messages import DeviceResults
from deploy.devices.places import machine_directory
from deploy.files.engine import LatencyFile
from deploy.files.loop import BundleFile, CandidateRow
from deploy.latency.history import Search, proposal_of
from deploy.latency.loop import LatencyLoop
from deploy.latency.prediction import prediction
from deploy.latency.steps import step_of
from deploy.lowering.onnx_files import sha256
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import DEVICE, Workspace
from deploy.runner.experiment import EXPERIMENT_FILE, RESULTS_FILE
from deploy.runner.product import ENGINES_DIRECTORY
from deploy.stages.finetuning import version_of
from deploy.stages.looping import loop_for, ratio_limit
from deploy.stages.making import export, keep_latency
from deploy.stages.policies import write_policy
from deploy.stages.scoring import method_of, score
from smpq.files import Interval
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores

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


def write_next_bundle(workspace: Workspace, budget_text: str | None, directory: Path) -> BundleFile:
    """Write the engines to measure next into `directory`, for a device without a network connection.

    The budget is that of the last bundle unless one is given. Writes `bundle.json`, which says which model is which
    policy. UserError when no other engine needs to be measured, or when the directory holds something else, or
    measurements that were not fed back.
    """
    known = workspace.run.find(BundleFile)
    text = budget_text or (known.budget if known is not None else None)
    if text is None:
        raise UserError("the first bundle of a run needs a budget with a latency: give --budget, as latency=0.7x")
    budget = Budget.from_text(text, workspace.settings.batch)
    if directory.exists() and (
        not directory.is_dir() or (any(directory.iterdir()) and not (directory / EXPERIMENT_FILE).is_file())
    ):
        raise UserError(f"{directory} holds something else: name a new directory")
    results = directory / RESULTS_FILE
    if results.is_file() and not was_taken(results, workspace.run.file(DEVICE)):
        paths = shlex.join(map(str, (workspace.run.path, results)))
        raise UserError(f"{results} was not fed back: use smpq feedback {paths} first, or delete it")
    if budget.loss is not None:
        raise UserError(f"{budget.loss} needs a device that answers: use smpq run, or bundle engines for a latency")
    scores = score(workspace, budget)
    method_of(scores).check_latency()
    export_float_model(workspace)
    limit = ratio_limit(workspace, budget, workspace.observations.float_ms())
    looped = _known_loop(workspace, budget, scores, limit)
    proposals = looped.ask_several(_AT_ONCE)
    if not proposals:
        raise UserError(f"no other engine needs to be measured: {looped.outcome().stop_reason}")
    candidates = [workspace.candidates.candidate(proposal.policy) for proposal in proposals]
    results.unlink(missing_ok=True)
    experiment = workspace.bench.experiment(candidates, label=str(budget))
    write_bundle(experiment, directory)
    keep_asked(experiment, workspace.run.file(DEVICE))
    record = BundleFile(
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
    workspace.run.write(record)
    return record


def take_feedback(workspace: Workspace, measurements: Path) -> Feedback:
    """Take in what a device has measured of the last bundle. Adds to `observations.json` and `loop.json`.

    Writes `policy.json`, the best policy so far, its model, and `latency.json`, what was measured of it. Returns its
    ratio to the float engine, whether it meets the budget, and how many other engines should be measured. UserError for
    measurements of something else.
    """
    known = workspace.run.read(BundleFile)
    budget = Budget.from_text(known.budget)
    found = read_results(measurements, workspace.run.file(DEVICE))
    with workspace.run.about(BundleFile):
        proposals = {name: proposal_of(row, workspace.space) for name, row in known.candidates.items()}
    strange = [result.name for result in found.results if result.name not in proposals]
    if strange:
        raise UserError(
            f"{measurements} has results of {strange[0]}, which is not in the last bundle of this run: measure that one"
        )
    observations, machine = workspace.observations, found.machine
    before = observations.all(machine)
    verdicts = observations.keep([(proposals[result.name].policy, result) for result in found.results], machine)
    limit = ratio_limit(workspace, budget, observations.float_ms(machine))
    steps = [
        step_of(proposals[result.name], verdict, limit) for result, verdict in zip(found.results, verdicts, strict=True)
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
    _keep_latency(workspace, outcome.policy, model, found)
    name = sha256(model)[:16]
    note_taken(measurements, workspace.run.file(DEVICE))
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


def _keep_latency(workspace: Workspace, policy: Policy, model: Path, arrived: DeviceResults) -> None:
    """Write what a device has measured of the policy's model, now or in an earlier bundle, unless the run knows more
    rounds of it.
    """
    place = machine_directory(workspace.run.file(DEVICE), arrived.machine)
    keep_results(place, arrived, {result.key: result for result in arrived.results})
    result = workspace.bench.recalled(workspace.candidates.kept(model), partial(known_of, place))
    before = workspace.run.find_for(LatencyFile, version_of(workspace.run, policy))
    known = before.rounds if before is not None and before.machine == arrived.machine else 0
    if result is not None and len(result.rounds_ms) >= known:
        predicted = prediction(workspace.run, workspace.observations, workspace.edges, policy, arrived.machine)
        keep_latency(workspace, policy, result, arrived.machine, predicted)


def _known_loop(
    workspace: Workspace, budget: Budget, scores: Scores, limit: float, machine: str | None = None
) -> LatencyLoop:
    """Return a loop that knows what `machine` has measured, or else the last one that did."""
    known, effort = workspace.observations, workspace.settings.spending
    return loop_for(workspace, budget, scores, effort, limit, known.engines(machine), known.refusals(machine))
