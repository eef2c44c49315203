"""The commands that choose formats: run, score, solve, explain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import APath, Declared, Group, Interval, OneOf
from calib.files.storage import plain
from deploy.commands.declared_options import declared_options, settings_from_options
from deploy.commands.options import LIMITS, NOT_MET, Result, Shared, command, printed, resource_options, run_argument
from deploy.run.settings import Settings, usual_directory
from smpq.methods import DEFAULT_METHOD, METHODS, method_from_name
from smpq.problem.budget import Budget
from smpq.reconstruction.losses.base import LOSSES
from smpq.scoring.explanation import Explanation
from smpq.training.settings import FineTuneSettings

USUAL_BUDGET = "drop=0.5"
UNLABELLED_BUDGET = "kl=0.02"
_TRAINING = ", ".join(f"{method.epochs:g} with {name}" for name, method in METHODS.items() if method.trains)
_FINETUNED = " or ".join(name for name, method in METHODS.items() if method.finetuned)


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    budget_or_usual: Annotated[
        str | None,
        Declared(
            "limits, e.g. drop=0.5 (points of the metric), latency=0.65x or size=0.2x,avg_bits=3.5; "
            "x is a fraction of the float model",
            LIMITS,
            "--budget",
            Group.WHAT,
            unset=f"{USUAL_BUDGET}; {UNLABELLED_BUDGET} with --data-free",
        ),
    ] = None
    out_or_new: Annotated[
        Path | None,
        Declared(
            "the run directory; a run that is there goes on",
            APath(),
            "--out",
            Group.WHAT,
            unset="runs/TASK-TARGET",
        ),
    ] = None
    method: Annotated[str, Declared("where scores come from (see smpq methods)", OneOf(METHODS), "--method")] = (
        DEFAULT_METHOD
    )
    method_or_last: Annotated[
        str | None,
        Declared(
            "where scores come from (see smpq methods)",
            OneOf(METHODS),
            "--method",
            unset=f"that of the run, or {DEFAULT_METHOD}",
        ),
    ] = None
    seconds: Annotated[
        float | None,
        Declared(
            "end the search so long after the start, with the best it has; making and verifying the engine follow",
            Interval(0, above=True),
            "--seconds",
            Group.LENGTH,
            unset="when more is expected to gain little",
        ),
    ] = None
    finetune: Annotated[
        float | None,
        Declared(
            "epochs of fine-tuning on the task's training data; of all training with a method that trains",
            Interval(0),
            "--finetune",
            Group.LENGTH,
            unset=f"0; {FineTuneSettings.epochs:g} with --method {_FINETUNED}, {_TRAINING}",
        ),
    ] = None
    reconstruct: Annotated[
        str | None,
        Declared(
            "reconstruct the chosen policy block by block, without labels; what a block's error costs",
            OneOf(LOSSES),
            "--reconstruct",
            Group.LENGTH,
            unset="not at all",
        ),
    ] = None


@command("run")
@declared_options(Settings)
@declared_options(_Own, "budget_or_usual", "out_or_new", "method", "finetune", "reconstruct", "seconds")
@declared_options(Shared, "device")
@resource_options
@printed
def run(
    budget: str | None,
    out: Path | None,
    finetune: float | None,
    reconstruct: str | None,
    seconds: float | None,
    method: str,
    device: str,
    progress: Any,
    resources: Any,
    **options: Any,
) -> Result:
    """Search, fine-tune with --finetune or --reconstruct, export, build, measure, verify and report: the whole job.

    Without a budget it looks for the fastest engine that loses at most half a point.
    Ends with the answers and the path of report.html. Exit code 1 means that the budget was not met; the closest engine
    is in the run all the same. The same command on an unfinished run goes on where it stopped. Ctrl-C ends the search
    with the best engine so far; again, it stops at once.
    """
    from deploy.report.page import summary_lines
    from deploy.stages.run_all import run_all
    from deploy.stages.tuning import tuning_for
    from deploy.terminal.patience import Patience

    progress.patience = Patience(seconds)
    settings = settings_from_options(Settings, options)
    tuning = tuning_for(method, finetune, reconstruct)
    out = out or usual_directory(settings)
    budget = budget or (UNLABELLED_BUDGET if settings.data_free else USUAL_BUDGET)
    progress.say(f"{settings.task} for {settings.target} within {budget}, in {out}")
    report = run_all(out, settings, budget, progress, tuning, method, resources, device)
    lines = [*summary_lines(report, out), "", f"report: {out / 'report.html'}"]
    return report, lines, 0 if report.met else NOT_MET


@command("score")
@declared_options(Settings)
@declared_options(Shared, "out")
@declared_options(_Own, "method_or_last")
@resource_options
@printed
def score(method: str | None, out: Path, progress: Any, resources: Any, **options: Any) -> Result:
    """Say what every format of every layer contributes: scores.json. Starts a run; any budget can be solved from it
    later.
    """
    from deploy.stages.run_all import open_run
    from deploy.stages.scoring import score as score_stage

    settings = settings_from_options(Settings, options)
    if method is not None:
        method_from_name(method).check_scores()
    with open_run(out, progress, settings, resources) as workspace:
        scores = score_stage(workspace, method=method)
    summary = (
        f"{scores.method}: {scores.evaluations} evaluations, {scores.permutations} samples of each, "
        f"stopped by {scores.stop_reason}"
    )
    return scores.to_file(), [f"scores: {out / 'scores.json'} ({summary})"], 0


@command("solve")
@run_argument
@declared_options(Shared, "budget")
@resource_options
@printed
def solve(run: Path, task: str | None, budget: str, progress: Any, resources: Any) -> Result:
    """Choose the formats for a budget from the scores of a run: policy.json. Does not score again.

    Latency is predicted from the engines that the run has measured.
    """
    from deploy.stages.choosing import solve as solve_stage
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, task=task) as workspace:
        solution = solve_stage(workspace, Budget.from_text(budget, workspace.settings.batch))
    record = plain(solution.policy.to_file(workspace.space.groups))
    costs = ", ".join(f"{name} {model.total(solution.policy):.6g}" for name, model in workspace.costs.items())
    line = f"policy: {run / 'policy.json'} (value {solution.value:.6g}; {costs})"
    return {**record, "value": solution.value}, [line], 0


@command("explain")
@run_argument
@declared_options(Explanation)
@resource_options
@printed
def explain(run: Path, task: str | None, progress: Any, resources: Any, **options: Any) -> Result:
    """Say what each layer's format costs in the policy of a run: Shapley values with intervals, contributions.json."""
    from deploy.stages.explaining import explain as explain_stage
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run

    explanation = settings_from_options(Explanation, options)
    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = explain_stage(workspace, read_policy(workspace), explanation)
    rows = sorted(record.contributions, key=lambda row: row.value)
    lines = [f"{r.value:+.3g} [{r.interval.low:+.3g}, {r.interval.high:+.3g}]  {r.group} {r.format}" for r in rows]
    return record, [*lines, f"together {record.total:+.4g} in {record.value}, {record.evaluations} evaluations"], 0
