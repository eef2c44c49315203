"""The whole job, stage by stage; a run that was stopped goes on with the first stage that is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from calib.task import TrainableTask
from deploy.files.engine import TimingRow
from deploy.files.report import ReportFile
from deploy.latency.history import settle, settled
from deploy.latency.steps import Outcome
from deploy.report.page import write_html
from deploy.run.data_free import check_budget
from deploy.run.directory import Run
from deploy.run.float_onnx import export_float_model
from deploy.run.opening import open_workspace
from deploy.run.settings import Settings
from deploy.run.trust import check_trusted, remember
from deploy.run.workspace import Workspace
from deploy.runner.state import QUIET
from deploy.stages.cheapest import judge_tuned
from deploy.stages.choosing import check_reachable, score_for, search, write_stability
from deploy.stages.evaluation import check_first_batch
from deploy.stages.finetuning import discard_other, version_of
from deploy.stages.making import build, export, measure, verify
from deploy.stages.reporting import write_report
from deploy.stages.scoring import check_method, check_scores, check_task, write_space
from deploy.stages.training import check_training, train
from deploy.stages.tuning import Tuning, check_tunable, tune_unless_done
from deploy.terminal.progress import Progress
from smpq.methods import DEFAULT_METHOD, method_from_name
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.training.settings import FineTuneSettings
from smpq.value.workers.resources import Resources

_PROPOSALS = 4
"""How many searches there are at most, the others because an engine turned out too slow in the thorough measurement."""


def open_run(
    path: Path,
    progress: Progress,
    settings: Settings | None = None,
    resources: Resources | None = None,
    device: str | None = None,
    task: str | None = None,
    check: Callable[[Workspace], None] | None = None,
) -> Workspace:
    """Prepare the run at `path`; with `settings` it is created if it is not there, or must have the same ones.

    The run is locked before anything else. A wrong input leaves nothing behind, nor does what `check` raises: the
    corrected command finds no settings in its way. `resources`: workers, devices and memory limit; workers, if any, end
    with `Workspace.close`. `device`: the machine that times engines, None for a command that times none. `task`: the
    task that the command line names for a run that is there (`deploy.run.trust`). UserError when another process works
    on it.
    """
    run = Run(path)
    known = run.settings() if settings is None else settings
    if settings is not None:
        run.check(settings)
    else:
        check_trusted(path, known, task)
    run.lock()
    try:
        run.check(known)  # once more: another process may have made it before the lock was ours
        workspace = open_workspace(run, known, progress, resources or Resources(), device or "")
        if check is not None:
            check(workspace)
        _ask_device(workspace)  # an address that does not answer is not kept
        if settings is not None:
            remember(path, known, progress)
        trainable = isinstance(workspace.task, TrainableTask)
        run.keep(known, workspace.identity, resources, trainable=trainable, address=device)
        if workspace.data_free is not None:
            workspace.data_free.keep(run)
        write_space(workspace)
    except BaseException:
        run.discard_if_new()
        raise
    return workspace


def run_all(
    path: Path,
    settings: Settings,
    budget_text: str,
    progress: Progress,
    tuning: Tuning | None = None,
    method: str = DEFAULT_METHOD,
    resources: Resources | None = None,
    device: str = "",
) -> ReportFile:
    """Search, fine-tune or reconstruct if `tuning` says how, export, build, measure, verify and report; returns the
    contents of `report.json`.

    `method` is where scores come from (`smpq.methods`).
    """
    budget = Budget.from_text(budget_text, settings.batch)
    check_method(method, budget)
    check_budget(settings, budget)
    check = partial(check_job, budget=budget, tuning=tuning, method=method)
    with open_run(path, progress, settings, resources, device, check=check) as workspace:
        return run_stages(workspace, budget, tuning, method)


def check_job(workspace: Workspace, budget: Budget, tuning: Tuning | None, method: str) -> None:
    """Raise UserError for what can be told before the work: what cannot be built, reached, scored, tuned or met."""
    check_scores(workspace, method)
    if workspace.times_here:
        workspace.backend.check_builds_here()
    _ask_device(workspace)
    if workspace.verifiable:
        check_first_batch(workspace.task, workspace.traced.sizes)
    check_reachable(workspace, budget)
    if method_from_name(method).trains:
        check_training(workspace, budget, method, _how(tuning))
        return
    if tuning is not None:
        check_tunable(workspace, tuning)
    check_task(workspace, method)


def _ask_device(workspace: Workspace) -> None:
    """Ask another machine for its name, where it times engines. UserError when it does not answer."""
    if not workspace.times_here and workspace.not_measurable is None:
        with workspace.progress.step("ask the device"):  # which takes minutes where the address is wrong
            workspace.device.describe()


def run_stages(workspace: Workspace, budget: Budget, tuning: Tuning | None, method: str) -> ReportFile:
    """Do the whole job in a run that is open, which `check_job` has found nothing wrong with; returns the contents of
    `report.json`.
    """
    progress = workspace.progress
    export_float_model(workspace)  # what torch cannot export is said before the work, not after
    made = _trained if method_from_name(method).trains else _chosen
    policy = made(workspace, budget, tuning, method)
    if workspace.verifiable:
        verify(workspace, policy)
    else:
        progress.warn("accuracy is not verified: the task gives no evaluation data")
    return write_reports(workspace.run, workspace.progress)


def _chosen(workspace: Workspace, budget: Budget, tuning: Tuning | None, method: str) -> Policy:
    """Search, then tune the weights of the policy that was chosen."""
    progress = workspace.progress
    with progress.patience.interruptible(progress.say):
        policy = _searched(workspace, budget, tuning, method)
    if tuning is not None:
        _tune(workspace, policy, tuning, budget)
    judge_tuned(workspace, policy, budget)
    return policy


def _trained(workspace: Workspace, budget: Budget, tuning: Tuning | None, method: str) -> Policy:
    """Train policy and weights together, and make the engine of them."""
    policy = train(workspace, budget, method, _how(tuning))
    _make(workspace, policy, budget)
    return policy


def _how(tuning: Tuning | None) -> FineTuneSettings:
    return tuning if isinstance(tuning, FineTuneSettings) else FineTuneSettings()


def _searched(workspace: Workspace, budget: Budget, tuning: Tuning | None, method: str) -> Policy:
    """Search, and make the engine; one that turns out too slow in the thorough measurement sends the search back."""
    scores = score_for(workspace, budget, method)
    while True:
        solution = search(workspace, budget, scores)
        policy = solution.policy
        if tuning is not None:
            discard_other(workspace, policy)
        timed = _make(workspace, policy, budget)
        if timed is None or solution.outcome is None or _stands(workspace, budget, solution.outcome, timed):
            break
        workspace.progress.say(
            f"measured thoroughly the engine takes {timed.ratio:.3f}x of float, and its interval reaches "
            f"{timed.ratio_interval.high:.3f}x, more than the budget: searching on"
        )
    with workspace.progress.step("ask how sure the scores are"):
        write_stability(workspace, scores, solution)
    return policy


def _stands(workspace: Workspace, budget: Budget, outcome: Outcome, timed: TimingRow) -> bool:
    """Whether the run goes on with what a search came to. The thorough measurement of the engine overrules the quick
    one of the loop, which then looks for another policy; not where other work on the machine keeps it from telling on
    which side of the budget it is.

    It is decided once and written to `loop.json`: a run that is started again, with an engine that was fine-tuned and
    measured since, say, goes the same way.
    """
    machine, limit = workspace.bench.machine, budget.limit("latency")
    known, overruled = settled(workspace.run, str(budget), machine)
    if known is not None:
        return known
    stands = (
        limit is None
        or not outcome.met
        or overruled + 1 >= _PROPOSALS
        or timed.ratio_interval.high <= limit.ratio(timed.float_ms)
        or (timed.slowdown > 1 + QUIET and timed.ratio_interval.low <= limit.ratio(timed.float_ms))
    )
    settle(workspace.run, str(budget), machine, stands=stands)
    return stands


def _make(workspace: Workspace, policy: Policy, budget: Budget) -> TimingRow | None:
    """Export, build and measure; None where the target cannot be measured."""
    export(workspace, policy)
    build(workspace, policy)
    if workspace.not_measurable is not None:
        return None
    return measure(workspace, policy, limit=budget.limit("latency")).measurement


def _tune(workspace: Workspace, policy: Policy, tuning: Tuning, budget: Budget) -> None:
    """Tune the weights of the policy that was chosen, and make its engine with them, which changes no latency."""
    if policy == workspace.space.uniform(workspace.space.reference):
        workspace.progress.say("the policy keeps every layer in floating point: no weight is tuned")
        return
    before = version_of(workspace.run, policy)
    tune_unless_done(workspace, policy, tuning)
    if version_of(workspace.run, policy) != before:
        _make(workspace, policy, budget)


def report_on(path: Path, progress: Progress) -> ReportFile:
    """Write the reports of the run at `path`; UserError when there is none, or when another process works on it."""
    run = Run(path)
    run.settings()
    run.lock()
    return write_reports(run, progress)


def write_reports(run: Run, progress: Progress) -> ReportFile:
    """Write `report.json` and `report.html` from the other files of a run. No task is imported, and no model loaded."""
    report = write_report(run, progress.seconds)
    write_html(run.path)
    for warning in report.warnings:
        progress.warn(warning)
    return report
