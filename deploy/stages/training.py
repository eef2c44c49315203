"""Training as a stage of a run: a method that trains makes policy and weights together, once."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from calib.errors import UserError
from deploy.run.workspace import Workspace
from deploy.stages.choosing import check_possible
from deploy.stages.finetuning import FINE_TUNED, TRAINING_DATA, for_run, keep_weights, record_weights, training_data
from deploy.stages.policies import read_policy, write_policy
from deploy.stages.scoring import check_scores, check_task, search_problem, static_ceilings
from smpq.methods import method_from_name
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.training.bits.state import TrainingFile
from smpq.training.finetuned import FineTunedFile, record_of_file
from smpq.training.settings import FineTuneSettings

KEPT_END = "end"


def train(workspace: Workspace, budget: Budget, method: str, how: FineTuneSettings) -> Policy:
    """Train for a budget by a method that does, and return the policy; a run that was trained so is read.

    Writes `policy.json`, `finetuned.safetensors` and `finetune.json`. The weights' record says by which method, and
    for which budget. UserError when the run holds weights of another training.
    """
    run, how = workspace.run, for_run(how, workspace)
    asked = _asked(workspace, method, budget, how)
    known = _recorded(workspace)
    if known is not None:
        _check_same(workspace, known, asked)
        record_weights(workspace)
        run.file(TrainingFile.NAME).unlink(missing_ok=True)
        workspace.progress.say(f"trained already: {run.file(FINE_TUNED)}")
        return read_policy(workspace)
    check_possible(workspace, static_ceilings(workspace, budget))
    solution = method_from_name(method).train(search_problem(workspace, budget, how))
    for note in solution.notes:
        workspace.progress.say(f"{method}: {note}")
    weights = solution.weights
    write_policy(workspace, solution.policy, budget)
    keep_weights(workspace, replace(weights, settings={**weights.settings, **asked}))
    run.file(TrainingFile.NAME).unlink(missing_ok=True)
    return solution.policy


def check_training(workspace: Workspace, budget: Budget, method: str, how: FineTuneSettings) -> None:
    """Raise UserError where the run cannot be trained so: before anything is calibrated."""
    if workspace.progress.patience.limited:
        raise UserError(
            f"--seconds ends a search with the best that it has, and --method {method} trains: give --finetune the "
            "epochs; a training that is stopped goes on with the same command"
        )
    if how.keep != KEPT_END:
        raise UserError(f"--method {method} keeps what its training ends with: the start is not within the budget")
    check_scores(workspace, method)
    check_task(workspace, method)
    known = _recorded(workspace)
    if known is not None:
        _check_same(workspace, known, _asked(workspace, method, budget, for_run(how, workspace)))


def _asked(workspace: Workspace, method: str, budget: Budget, how: FineTuneSettings) -> dict[str, Any]:
    return {"method": method, "budget": str(budget), **asdict(how), **training_data(workspace)}


def _recorded(workspace: Workspace) -> FineTunedFile | None:
    path = workspace.run.file(FINE_TUNED)
    return record_of_file(path) if path.is_file() else None


def _check_same(workspace: Workspace, known: FineTunedFile, asked: dict[str, Any]) -> None:
    path = workspace.run.file(FINE_TUNED)
    if known.fingerprint != workspace.fingerprint:
        raise UserError(
            f"{path} was made from another model or other calibration data: delete it, or use another --out"
        )
    for name, value in asked.items():
        before = known.settings.get(name)
        if before != value:
            told = f"{name}={before!r}, now {value!r} is asked for" if name != TRAINING_DATA else "other training data"
            raise UserError(f"{path} was trained with {told}: use another --out, or delete it")
