"""What each layer's format costs in the chosen policy: Shapley values of that one policy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from calib.errors import UserError
from deploy.run.workspace import Workspace
from smpq.files import ContributionRow, ContributionsFile, Interval
from smpq.problem.policy import Policy
from smpq.scoring.estimators import Stopping, estimator_from_name
from smpq.scoring.explanation import Explanation
from smpq.scoring.game import PolicyGame


def explain(workspace: Workspace, policy: Policy, explanation: Explanation | None = None) -> ContributionsFile:
    """Estimate what every group's format adds to the value, against the float model. Writes `contributions.json`.

    Efficiency: the contributions sum to the value of the policy minus that of the float model. UserError when the
    evaluations do not suffice for an interval, or when the policy is the float model.
    """
    chosen = explanation or Explanation()
    space = workspace.space
    game = PolicyGame(workspace.evaluator, space, space.uniform(space.reference), policy)
    if not game.players:
        raise UserError("policy.json leaves every layer in float: there is nothing to explain")
    evaluations = chosen.budget(len(game.players), workspace.settings.spending.scoring)
    with workspace.progress.step("explain the policy"):
        estimate = estimator_from_name(chosen.estimator).estimate(
            game, len(game.players), Stopping(evaluations, chosen.precision), workspace.settings.seed
        )
    low, high = estimate.interval()
    record = ContributionsFile(
        policy=policy.key(),
        value=workspace.settings.value,
        total=float(estimate.values.sum()),
        estimator=estimate.estimator,
        evaluations=estimate.evaluations,
        seed=estimate.seed,
        stop_reason=estimate.stop_reason,
        contributions=tuple(
            ContributionRow(
                group=name,
                format=str(policy[name]),
                value=float(estimate.values[index]),
                standard_error=float(estimate.standard_errors[index]),
                interval=Interval(float(low[index]), float(high[index])),
                samples=int(estimate.samples[index]),
            )
            for index, name in enumerate(game.players)
        ),
        apart=_apart(game.players, estimate.values.tolist(), low.tolist(), high.tolist()),
    )
    workspace.run.write(record)
    return record


def _apart(
    names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> tuple[tuple[str, ...], ...]:
    """Return the groups in order of what they cost, in classes: neighbours whose intervals overlap stand in one
    class.
    """
    order = sorted(range(len(names)), key=lambda index: values[index])
    classes: list[list[str]] = []
    reach = float("-inf")
    for index in order:
        if classes and low[index] <= reach:
            classes[-1].append(names[index])
            reach = max(reach, high[index])
        else:
            classes.append([names[index]])
            reach = high[index]
    return tuple(map(tuple, classes))
