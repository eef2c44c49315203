"""The cheapest engine that loses little enough: the answer to a budget on the loss (`drop=0.5`, `kl=0.02`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from calib.errors import UserError
from calib.task import SetTask
from deploy.files.search import BudgetFile, Judged, LossFile
from deploy.latency.observations import latency_model
from deploy.latency.steps import LoopSettings, Outcome
from deploy.run.data_free import check_budget
from deploy.run.workspace import Workspace
from deploy.stages.finetuning import FINE_TUNED, tuned, version_of
from deploy.stages.looping import close_loop
from deploy.stages.scoring import static_ceilings
from smpq.files import Interval
from smpq.problem.budget import Budget, Limit
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Impossible, Problem, nearest_feasible
from smpq.solve.cheapest import cheapest
from smpq.solve.effort import Effort
from smpq.solve.search import choose
from smpq.value.loss import Loss, stated_point
from smpq.value.policy_loss import PolicyLoss

_UNITS: dict[str, Literal["points", "nats"]] = {"drop": "points", "kl": "nats"}


@dataclass(frozen=True)
class Verdicts:
    """Says of policies whether they lose little enough, on held-out samples where the task has some.

    `limit` is in points or nats. `data` names the batches, `content` is their hash. `unproven` holds, by policy, what
    loses less than the limit in the mean of too few samples to show it.
    """

    loss: PolicyLoss
    limit: float
    data: Judged
    content: str
    unit: Literal["points", "nats"]
    unproven: dict[str, Loss] = field(default_factory=dict)

    def allows(self, policy: Policy) -> bool:
        """Whether the upper end of the 95 % interval of what the policy loses is within the limit."""
        found = self.of(policy)
        if found.samples_needed(self.limit) is not None and not found.within(self.limit):
            self.unproven[policy.key()] = found
        return found.within(self.limit)

    def of(self, policy: Policy) -> Loss:
        """Return what a policy loses."""
        return self.loss(policy, self.limit)


def check_decidable(workspace: Workspace, budget: Budget) -> None:
    """Raise UserError where the held-out samples cannot say how sure a loss is, as may be with a metric of all of them
    together, and where nothing could lose as much as the budget allows.
    """
    limit, task = budget.loss, workspace.task
    check_budget(workspace.settings, budget)
    if limit is None or limit.cost != "drop" or not (isinstance(task, SetTask) or stated_point(task) is None):
        return
    data, losses = workspace.held_out.data, workspace.held_out.losses(limit.cost)
    if isinstance(task, SetTask) and (doubt := losses.doubt()) is not None:
        raise UserError(f"{limit} cannot be decided on the {data} batches: {doubt}; or give a budget on kl")
    if stated_point(task) is None and not limit.relative and limit.value >= abs(losses.float_metric()):
        whole = losses.float_metric() * losses.point
        raise UserError(
            f"{limit} is {limit.value * losses.point:g} of {task.metric_name}, of which the float model has "
            f"{whole:.4g} on the {data} batches: say how much of it is a point (metric_point), or give a smaller drop"
        )


def verdicts_of(workspace: Workspace, limit: Limit) -> Verdicts:
    """Return who decides about a limit on the loss. Warns where the task has no held-out samples.

    UserError where a share of the float model's metric is asked for and that is not above zero.
    """
    data, loss = workspace.held_out.data, workspace.held_out.losses(limit.cost)
    if data == "calibration":
        workspace.progress.warn(
            f"{limit} is decided on the calibration batches, which the model may have been trained on and the search "
            "uses: give the task a method selection() that returns held-out batches with targets"
        )
    if data == "synthetic":
        workspace.progress.warn(f"{limit} is decided on the synthetic samples: on those of the user it may be another")
    value = limit.value
    if limit.cost == "drop" and stated_point(workspace.task) is None:
        why = ", since it lies between 0 and 1" if loss.point < 1 else ""
        workspace.progress.say(f"a point of {workspace.task.metric_name} is {loss.point:g}{why}")
    if limit.relative:
        whole = loss.float_metric()
        if not whole > 0:
            raise UserError(
                f"{limit} is a share of the float model's {workspace.task.metric_name}, which is {whole:.4g} points: "
                "give the limit in points, as in drop=0.5"
            )
        value *= whole
        workspace.progress.say(f"{limit} is {value:.3g} points of {workspace.task.metric_name}")
    return Verdicts(loss, value, data, workspace.held_out.batches.content, _UNITS[limit.cost])


def search_cheapest(
    workspace: Workspace, budget: Budget, scores: Scores, effort: Effort, loop: LoopSettings | None = None
) -> tuple[Policy, str, Outcome | None]:
    """Return the policy whose engine is fastest, by measuring, of those that lose little enough; with why the search
    ended and the loop's outcome.

    Where engines of the target cannot be timed it is the smallest. Writes `loss.json`.
    """
    limit = budget.loss
    assert limit is not None
    verdicts = verdicts_of(workspace, limit)
    if workspace.not_measurable is None:
        outcome, _ = close_loop(workspace, budget, scores, effort, loop, verdicts.allows, verdicts.content)
        found, reason = outcome.policy, outcome.stop_reason
    else:
        outcome, reason = None, f"the smallest, since {workspace.not_measurable}"
        found = _by_cost(workspace, budget, scores, effort, workspace.costs["size"], verdicts.allows)
    keep_loss(workspace, budget, found, verdicts)
    return found, reason, outcome


def judge_tuned(workspace: Workspace, policy: Policy, budget: Budget | None = None) -> None:
    """Write what the policy loses with its tuned weights, where the budget, by default the run's, limits that. Warns
    where it is more than the budget allows.
    """
    known = workspace.run.find(BudgetFile)
    if budget is None and known is not None:
        budget = Budget.from_text(known.budget)
    if budget is None or budget.loss is None or (model := tuned(workspace, policy)) is None:
        return
    verdicts, key = verdicts_of(workspace, budget.loss), version_of(workspace.run, policy)
    found = verdicts.loss.of_tuned(model.traced, model.edits(), key, verdicts.limit)
    _keep(workspace, budget, key, found, verdicts)
    if not found.within(verdicts.limit):
        workspace.progress.warn(
            f"with its tuned weights the policy is not shown to be within {budget.loss}: tune with other settings, or "
            f"delete {workspace.run.file(FINE_TUNED)} to go back"
        )


def solve_cheapest(workspace: Workspace, budget: Budget, scores: Scores, effort: Effort) -> Policy:
    """Return the policy that is predicted to be fastest of those that lose little enough; the smallest where this run
    has measured no engine. Writes `loss.json`.
    """
    limit = budget.loss
    assert limit is not None
    verdicts = verdicts_of(workspace, limit)
    cost = workspace.costs["size"]
    if workspace.observations.machines:
        cost = latency_model(workspace.observations, workspace.edges, workspace.progress.say).cost_model()
    found = _by_cost(workspace, budget, scores, effort, cost, verdicts.allows)
    keep_loss(workspace, budget, found, verdicts)
    return found


def keep_loss(workspace: Workspace, budget: Budget, policy: Policy, verdicts: Verdicts) -> None:
    """Write what the chosen policy loses, and say how many samples would show more: of it, and of cheaper ones."""
    _keep(workspace, budget, policy.key(), verdicts.of(policy), verdicts)
    cheaper = [loss for key, loss in verdicts.unproven.items() if key != policy.key()]
    if cheaper:
        least = min(loss.samples_needed(verdicts.limit) or 0 for loss in cheaper)
        workspace.progress.warn(
            f"{len(cheaper)} cheaper plans lose less than {verdicts.limit:.3g} {verdicts.unit} in the mean of "
            f"{cheaper[0].samples} {verdicts.data} samples, which are too few to show it: about {least} would show it "
            "of one of them"
        )


def _keep(workspace: Workspace, budget: Budget, key: str, found: Loss, verdicts: Verdicts) -> None:
    low, high = found.interval
    needed = found.samples_needed(verdicts.limit)
    workspace.run.write(
        LossFile(
            policy=key,
            budget=str(budget),
            limit=verdicts.limit,
            unit=verdicts.unit,
            mean=found.mean,
            interval=Interval(low, high),
            samples=found.samples,
            data=verdicts.data,
        )
    )
    said = f"loses {found.mean:.3g} {verdicts.unit} on {found.samples} {verdicts.data} samples, {low:.3g} to {high:.3g}"
    if high > verdicts.limit and needed is not None:
        said += f"; about {needed} samples would show that it is within {verdicts.limit:.3g}"
    workspace.progress.say(said)


def _by_cost(
    workspace: Workspace,
    budget: Budget,
    scores: Scores,
    effort: Effort,
    cost: CostModel,
    allows: Callable[[Policy], bool],
) -> Policy:
    """Return the cheapest policy found by a cost that needs no measurement."""
    space, ceilings = workspace.space, static_ceilings(workspace, budget)
    reference = space.uniform(space.reference)

    def within(limit: float) -> Policy | None:
        try:
            value, limits = workspace.evaluator, [Ceiling(cost, limit), *ceilings]
            return choose(value, space, scores.starts(), limits, effort, folds=value.folds).policy
        except Impossible:
            return None

    least = cost.total(nearest_feasible(Problem(space, {}, [Ceiling(cost, 1e-6 * cost.float_total)])))
    most = cost.float_total * 1.0001
    with workspace.progress.step("choose the policy"):
        found = cheapest(within, cost.total, lambda policy: policy == reference or allows(policy), least * 0.999, most)
    if found is not None:
        return found
    if not ceilings or all(ceiling.model.total(reference) <= ceiling.limit for ceiling in ceilings):
        return reference
    return within(most) or reference
