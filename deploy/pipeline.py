"""The whole job, stage by stage; a run that was stopped goes on with the first stage that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.prepare import Prepared, prepare
from deploy.progress import Progress
from deploy.report import write_html
from deploy.run import Run, Settings
from deploy.stages import build, export, measure, search, verify
from deploy.summary import write_report
from smpq.budget import Budget
from smpq.policy import Policy


def open_run(path: Path, progress: Progress, settings: Settings | None = None) -> Prepared:
    """Prepare the run at `path`; with `settings` it is created if it is not there, or must have the same ones.

    A run is only created for a task that loads: after a wrong input, the corrected command finds no settings in its way.
    """
    run = Run(path)
    if settings is None:
        settings = run.settings()
    else:
        run.check(settings)
    prepared = prepare(run, settings, progress)
    run.keep(settings, prepared.fingerprint)
    return prepared


def run_all(path: Path, settings: Settings, budget_text: str, progress: Progress) -> dict[str, Any]:
    """Search, export, build, measure, verify and report; returns the contents of `report.json`."""
    budget = Budget.from_text(budget_text)
    prepared = open_run(path, progress, settings)
    solution = search(prepared, budget)
    policy = solution.policy
    export(prepared, policy)
    build(prepared, policy)
    if prepared.target.measurable:
        measure(prepared, policy)
    verify(prepared, policy)
    return write_reports(prepared, policy)


def write_reports(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Write `report.json` and `report.html`."""
    report = write_report(prepared, policy)
    write_html(prepared.run.path)
    for warning in report["warnings"]:
        prepared.progress.warn(warning)
    return report
