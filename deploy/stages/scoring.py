"""Score: what every format of every layer contributes. Writes `scores.json`.

`space.json` and `costs.json` say what may be chosen.
"""

from __future__ import annotations

from calib.errors import UserError
from deploy.run.scores import find_scores
from deploy.run.spaces import file_from_costs, file_from_space
from deploy.run.workspace import Prepared
from smpq.files import ScoresFile
from smpq.methods import DEFAULT_METHOD, Limits, Method, SearchProblem, method_from_name
from smpq.problem.budget import Budget
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling


def score(prepared: Prepared, budget: Budget | None = None, method: str | None = None) -> Scores:
    """Estimate the contributions by a method, or read them when the run has them. Writes `scores.json`.

    `method` None stands for that of the scores that the run has, or the default one. A budget on bits or size may say
    where a method looks; the scores serve every other budget too. UserError when the run has scores of another method.
    """
    run = prepared.run
    if method is not None:
        check_scores(prepared, method)
    scores = find_scores(run, prepared.space)
    if scores is not None:
        contexts = f", {scores.permutations} permutations" if scores.permutations else ""
        prepared.progress.say(f"scores: {scores.estimator}{contexts}, read from {run.file(ScoresFile.NAME)}")
        return scores
    scores = method_from_name(method or DEFAULT_METHOD).score(search_problem(prepared, budget)).linear
    run.write(scores.to_file())
    return scores


def search_problem(prepared: Prepared, budget: Budget | None = None) -> SearchProblem:
    """Return what a method is given."""
    settings = prepared.settings
    return SearchProblem(
        task=prepared.task,
        traced=prepared.traced,
        original=prepared.original,
        folded=prepared.folded,
        space=prepared.space,
        costs=prepared.costs,
        ceilings=tuple(static_ceilings(prepared, budget)) if budget is not None else (),
        batches=prepared.batches,
        judging=prepared.judging,
        value_name=settings.value,
        limits=Limits(settings.spending.scoring, settings.precision, stable=settings.stable and budget is not None),
        seed=settings.seed,
        device=prepared.resources.evaluates_on,
        fingerprint=prepared.fingerprint,
        progress=prepared.progress,
        files=prepared.run,
        make_fake_quantizer=lambda: prepared.fake_quantizer,
        make_evaluator=lambda: prepared.evaluator,
    )


def check_method(method: str, budget: Budget) -> None:
    """Raise UserError for an unknown method, or one that has no answer to the budget."""
    declared = method_from_name(method)
    if budget.limit("latency") is not None:
        declared.check_latency()


def check_scores(prepared: Prepared, method: str) -> None:
    """Raise UserError when the run has scores of another method."""
    known = prepared.run.find(ScoresFile)
    if known is not None and known.method != method:
        path = prepared.run.file(known.NAME)
        raise UserError(
            f"{path} is of method {known.method}, now {method} is asked for: use another --out, or delete it"
        )


def check_task(prepared: Prepared, method: str) -> None:
    """Raise UserError when the task lacks what a method needs."""
    method_from_name(method).check_task(prepared.task, prepared.batches)


def scores_for_loop(prepared: Prepared, budget: Budget, method: str | None = None) -> Scores:
    """Return the scores for a search over measured engines; UserError when their method has no answer to a latency."""
    scores = score(prepared, budget, method)
    method_of(scores).check_latency()
    return scores


def method_of(scores: Scores) -> Method:
    """Return the method that made the scores."""
    return method_from_name(scores.method)


def write_space(prepared: Prepared) -> None:
    """Write what may be chosen, what was refused and why, and what each choice costs."""
    prepared.run.write(file_from_space(prepared.space, prepared.skipped, prepared.refused))
    prepared.run.write(file_from_costs(prepared.costs))


def static_ceilings(prepared: Prepared, budget: Budget) -> list[Ceiling]:
    """Return the limits on costs that need no measurement."""
    return [
        Ceiling(prepared.costs[limit.cost], limit.absolute(prepared.costs[limit.cost].float_total))
        for limit in budget.limits
        if limit.cost != "latency"
    ]
