"""What was predicted for a policy's engine before that engine was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.files.loop import LoopFile
from deploy.files.store import RecordStore
from deploy.latency.model import fit
from deploy.latency.observations import Observations
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space


@dataclass(frozen=True)
class Prediction:
    """A ratio to the float engine with its 95 % interval; `engines` is how many measured engines of other policies it
    is made from.
    """

    ratio: float
    interval: tuple[float, float]
    engines: int


def prediction(
    store: RecordStore, observations: Observations, edges: Sequence[Edge], policy: Policy, machine: str
) -> Prediction | None:
    """Return what was predicted for a policy on `machine` without any measurement of this policy; None where no other
    engine is known.

    It is the prediction that the loop made before it measured the policy. Without one, the latency model is fitted to
    the other policies.
    """
    space = observations.space
    step = _step_of(store.find(LoopFile), space, policy, machine)
    if step is not None:
        return step
    others = [each for each in observations.engines(machine) if each.policy.key() != policy.key()]
    if not others or policy == space.uniform(space.reference):
        return None
    ratio, error = fit(space, edges, others).predict(policy)
    return Prediction(ratio, (ratio - 1.96 * error, ratio + 1.96 * error), len(others))


def _step_of(file: LoopFile | None, space: Space, policy: Policy, machine: str) -> Prediction | None:
    """Return the prediction of the first step of the loop that measured the policy on `machine`; None where it was made
    from no engine.
    """
    wanted = policy.to_file(space.groups)
    for search in file.searches if file is not None else ():
        for step in search.steps:
            if search.machine == machine and step.policy == wanted and step.predicted_from:
                interval = step.predicted_interval
                return Prediction(step.predicted, (interval.low, interval.high), step.predicted_from)
    return None
