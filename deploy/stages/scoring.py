"""Score: what every format of every layer contributes. Writes `scores.json`.

`space.json` and `costs.json` say what may be chosen.
"""

from __future__ import annotations

from calib.errors import UserError
from deploy.files.loop import LoopFile
from deploy.run.data_free import refuse_data_free
from deploy.run.scores import find_scores
from deploy.run.spaces import file_from_costs, file_from_space
from deploy.run.subject import trains_on
from deploy.run.workspace import Workspace
from deploy.stages.finetuning import FINE_TUNED, trained_by
from smpq.files import ScoresFile
from smpq.methods import DEFAULT_METHOD, Limits, Method, Need, SearchProblem, method_from_name
from smpq.problem.budget import Budget
from smpq.scoring.scores import Scores
from smpq.scoring.stability import CUT_SHORT
from smpq.solve.allocate import Ceiling
from smpq.training.settings import FineTuneSettings
from smpq.value.negligible import negligible_loss


def score(workspace: Workspace, budget: Budget | None = None, method: str | None = None) -> Scores:
    """Estimate the contributions by a method, or read them when the run has them. Writes `scores.json`.

    `method` None stands for that of the scores that the run has, or the default one. A budget on bits or size may say
    where a method looks; the scores serve every other budget too. UserError when the run has scores of another method.
    """
    run = workspace.run
    method_from_name(method or DEFAULT_METHOD).check_scores()
    _check_untrained(workspace, None)
    if method is not None:
        check_scores(workspace, method)
    scores = find_scores(run, workspace.space)
    if scores is not None and scores.stop_reason == CUT_SHORT and not workspace.progress.enough():
        workspace.progress.say(
            f"scores: sampling goes on, since it was cut short after {scores.evaluations} evaluations"
        )
        scores = None
    if scores is not None:
        contexts = f", {scores.permutations} permutations" if scores.permutations else ""
        workspace.progress.say(f"scores: {scores.estimator}{contexts}, read from {run.file(ScoresFile.NAME)}")
        _say_notes(workspace, scores)
        return scores
    check_task(workspace, method or DEFAULT_METHOD)
    scores = method_from_name(method or DEFAULT_METHOD).score(search_problem(workspace, budget)).scores
    run.write(scores.to_file())
    _say_notes(workspace, scores)
    return scores


def _say_notes(workspace: Workspace, scores: Scores) -> None:
    for note in scores.notes:
        workspace.progress.say(f"scores: {note}")


def search_problem(
    workspace: Workspace, budget: Budget | None = None, training: FineTuneSettings | None = None
) -> SearchProblem:
    """Return what a method is given; `training` says how one that trains is to do so."""
    settings = workspace.settings
    return SearchProblem(
        task=workspace.task,
        traced=workspace.traced,
        original=workspace.original,
        folded=workspace.folded,
        space=workspace.space,
        costs=workspace.costs,
        ceilings=tuple(static_ceilings(workspace, budget)) if budget is not None else (),
        batches=workspace.batches,
        judging=workspace.judging,
        value_name=settings.value,
        limits=Limits(settings.spending.scoring, settings.precision, settings.spending.gain),
        seed=settings.seed,
        device=trains_on(workspace),
        fingerprint=workspace.fingerprint,
        progress=workspace.progress,
        files=workspace.run,
        make_fake_quantizer=lambda: workspace.fake_quantizer,
        make_evaluator=lambda: workspace.evaluator,
        training=training or FineTuneSettings(seed=settings.seed),
        negligible_loss=negligible_loss(workspace.task, settings.value, workspace.traced),
    )


def check_method(method: str, budget: Budget) -> None:
    """Raise UserError for an unknown method, or one that has no answer to the budget."""
    declared = method_from_name(method)
    if budget.limit("latency") is not None or budget.loss is not None:
        declared.check_latency()


def check_scores(workspace: Workspace, method: str) -> None:
    """Raise UserError when the run has scores of another method, or was trained by one."""
    _check_untrained(workspace, method)
    known = workspace.run.find(ScoresFile)
    if known is not None and known.method != method:
        path = workspace.run.file(known.NAME)
        raise UserError(
            f"{path} is of method {known.method}, now {method} is asked for: use another --out, or delete it and "
            f"{LoopFile.NAME}, which was searched with it"
        )


def _check_untrained(workspace: Workspace, method: str | None) -> None:
    """Raise UserError when another method than this one trained the run's policy:
    a search would discard its weights.
    """
    known = trained_by(workspace.run)
    if known is not None and known != method:
        raise UserError(
            f"{workspace.run.file(FINE_TUNED)} was trained by --method {known}, with its policy: use another --out to "
            "search, or delete it"
        )


def check_task(workspace: Workspace, method: str) -> None:
    """Raise UserError when the task lacks what a method needs."""
    declared = method_from_name(method)
    if {Need.LABELS, Need.TRAINING_DATA}.intersection(declared.needs):
        refuse_data_free(workspace.settings, f"--method {method}")
    declared.check_task(workspace.task, workspace.batches)


def method_of(scores: Scores) -> Method:
    """Return the method that made the scores."""
    return method_from_name(scores.method)


def write_space(workspace: Workspace) -> None:
    """Write what may be chosen, what was refused and why, and what each choice costs."""
    sizes = workspace.traced.sizes.ranges(workspace.traced.inputs)
    workspace.run.write(file_from_space(workspace.space, workspace.skipped, workspace.refused, sizes))
    workspace.run.write(file_from_costs(workspace.costs))


def static_ceilings(workspace: Workspace, budget: Budget) -> list[Ceiling]:
    """Return the limits on costs that need no measurement. UserError for a share of a cost that is 0."""
    found = []
    for limit in budget.costs:
        if limit.cost == "latency":
            continue
        model = workspace.costs[limit.cost]
        if limit.relative and not model.float_total:
            raise UserError(f"{limit} is a share of the float model's {limit.cost}, which is 0: limit another cost")
        found.append(Ceiling(model, limit.absolute(model.float_total)))
    return found
