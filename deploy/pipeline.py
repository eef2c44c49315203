"""The whole job, stage by stage; a run that was stopped goes on with the first stage that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.finetuning import check_trainable, discard_other, finetune_unless_done, version_key
from deploy.prepare import Prepared, prepare
from deploy.progress import Progress
from deploy.report.page import write_html
from deploy.run import Run, Settings
from deploy.stages import build, export, measure, search, verify
from deploy.stages.explaining import explain
from deploy.stages.supernet import GAME, check_method, check_scores, score_by_supernet
from deploy.summary import write_report
from deploy.targets.target import check_builds_here
from smpq.budget import Budget
from smpq.policy import Policy
from smpq.training.finetune import FineTuneSettings
from smpq.workers.resources import Resources

_PROPOSALS = 4
"""How often an engine that turns out too slow in the thorough measurement sends the search back."""


def open_run(
    path: Path, progress: Progress, settings: Settings | None = None, resources: Resources | None = None, device: str = ""
) -> Prepared:
    """Prepare the run at `path`; with `settings` it is created if it is not there, or must have the same ones.

    A run is only created for a task that loads: after a wrong input, the corrected command finds no settings in its way. `resources`
    say with what it is computed, and `device` where engines are timed; workers, if any, end with `Prepared.close`. UserError when another process works on the run.
    """
    run = Run(path)
    if settings is None:
        settings = run.settings()
    else:
        run.check(settings)
    if run.has("run.json"):
        run.lock()
    prepared = prepare(run, settings, progress, resources or Resources(), device)
    run.keep(settings, prepared.identity, resources)
    return prepared


def run_all(
    path: Path,
    settings: Settings,
    budget_text: str,
    progress: Progress,
    tuning: FineTuneSettings | None = None,
    method: str = GAME,
    resources: Resources | None = None,
    device: str = "",
) -> dict[str, Any]:
    """Search, fine-tune if `tuning` says how, export, build, measure, verify and report; returns the contents of `report.json`.

    With the methods `smpq` and `dmpq` the scores come from a supernet, which is trained first.
    """
    budget = Budget.from_text(budget_text)
    check_method(method, budget)
    with open_run(path, progress, settings, resources, device) as prepared:
        return _run_stages(prepared, budget, tuning, method)


def _run_stages(prepared: Prepared, budget: Budget, tuning: FineTuneSettings | None, method: str) -> dict[str, Any]:
    settings, progress = prepared.settings, prepared.progress
    limit = budget.limit("latency")
    check_scores(prepared, method)
    # what cannot be built or reached is told before the work and not behind it
    if prepared.times_here:
        check_builds_here(prepared.target)
    if prepared.not_measurable is None:
        prepared.device.describe()
    if tuning is not None:
        check_trainable(prepared)
    if method != GAME:
        score_by_supernet(prepared, method)
    for _ in range(_PROPOSALS):
        solution = search(prepared, budget)
        policy = solution.policy
        if tuning is not None:
            discard_other(prepared, policy)
        timed = _make(prepared, policy)
        if timed is None:
            break
        out_of_reach = solution.outcome is not None and not solution.outcome.met
        if limit is None or out_of_reach or timed["interval"][1] <= limit.absolute(timed["float_ms"]) / timed["float_ms"]:
            break
        # the thorough measurement overrules the quick one of the loop, which now looks for another policy
        progress.say(f"measured thoroughly the engine takes {timed['ratio']:.3f}x of float, more than the budget: searching on")
    if tuning is not None:
        _finetune(prepared, policy, tuning)
    if settings.effort != "fast" and policy != prepared.space.uniform(prepared.space.reference):
        explain(prepared, policy)
    verify(prepared, policy)
    return write_reports(prepared, policy)


def _make(prepared: Prepared, policy: Policy) -> dict[str, Any] | None:
    """Export, build and measure; None where the target cannot be measured."""
    export(prepared, policy)
    build(prepared, policy)
    return measure(prepared, policy) if prepared.not_measurable is None else None


def _finetune(prepared: Prepared, policy: Policy, tuning: FineTuneSettings) -> None:
    """Fine-tune the policy that was chosen, and make its engine with the new weights, which changes no latency."""
    if policy == prepared.space.uniform(prepared.space.reference):
        prepared.progress.say("the policy keeps every layer in floating point: there is nothing to fine-tune")
        return
    before = version_key(prepared, policy)
    finetune_unless_done(prepared, policy, tuning)
    if version_key(prepared, policy) != before:
        _make(prepared, policy)


def write_reports(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Write `report.json` and `report.html`."""
    report = write_report(prepared, policy)
    write_html(prepared.run.path)
    for warning in report["warnings"]:
        prepared.progress.warn(warning)
    return report
