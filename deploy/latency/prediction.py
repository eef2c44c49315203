"""What was predicted for a policy's engine before that engine was measured."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.files.search import LoopFile
from deploy.latency.observations import fitted, read_observations
from deploy.run.workspace import Workspace
from smpq.problem.policy import Policy


@dataclass(frozen=True)
class Prediction:
    """A ratio to the float engine with its 95 % interval; `engines` is how many measured engines of other policies it
    is made from.
    """

    ratio: float
    interval: tuple[float, float]
    engines: int


def prediction(workspace: Workspace, policy: Policy, machine: str) -> Prediction | None:
    """Return what was predicted for a policy on `machine` without any measurement of this policy; None where no other
    engine is known.

    It is the prediction that the loop made before it measured the policy. Without one, the latency model is fitted to
    the other policies.
    """
    step = _step_of(workspace, policy, machine)
    if step is not None:
        return step
    others = [each for each in read_observations(workspace, machine) if each.policy.key() != policy.key()]
    reference = workspace.space.uniform(workspace.space.reference)
    if not others or policy == reference:
        return None
    ratio, error = fitted(workspace, others).predict(policy)
    return Prediction(ratio, (ratio - 1.96 * error, ratio + 1.96 * error), len(others))


def _step_of(workspace: Workspace, policy: Policy, machine: str) -> Prediction | None:
    """Return the prediction of the first step of the loop that measured the policy on `machine`; None where it was made
    from no engine.
    """
    file = workspace.run.find(LoopFile)
    wanted = policy.to_file(workspace.space.groups)
    for search in file.searches if file is not None else ():
        for step in search.steps:
            if search.machine == machine and step.policy == wanted and step.predicted_from:
                interval = step.predicted_interval
                return Prediction(step.predicted, (interval.low, interval.high), step.predicted_from)
    return None
