"""What was predicted for a policy's engine before that engine was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calib.errors import UserError
from deploy.latency.observations import fitted, read_observations
from deploy.prepare import Prepared
from smpq.policy import Policy

LOOP = "loop.json"


@dataclass(frozen=True)
class Prediction:
    """A ratio to the float engine with its 95 % interval; `engines` is how many measured engines of other policies it is made from."""

    ratio: float
    interval: tuple[float, float]
    engines: int


def prediction(prepared: Prepared, policy: Policy, machine: str) -> Prediction | None:
    """Return what was predicted for a policy on `machine` without any measurement of this policy; None where no other engine is known.

    It is the prediction that the loop made before it measured the policy. Without one, the latency model is fitted to the other policies.
    """
    step = _step_of(prepared, policy, machine)
    if step is not None:
        return step
    others = [each for each in read_observations(prepared, machine) if each.policy.key() != policy.key()]
    reference = prepared.space.uniform(prepared.space.reference)
    if not others or policy == reference:
        return None
    ratio, error = fitted(prepared, others).predict(policy)
    return Prediction(ratio, (ratio - 1.96 * error, ratio + 1.96 * error), len(others))


def _step_of(prepared: Prepared, policy: Policy, machine: str) -> Prediction | None:
    """Return the prediction of the first step of the loop that measured the policy on `machine`; None where it was made from no engine."""
    if not prepared.run.has(LOOP):
        return None
    formats = {name: str(chosen) for name, chosen in policy.formats.items()}
    try:
        for step in prepared.run.read_json(LOOP, keys=["steps"])["steps"]:
            same = step["policy"] == formats and step["float_joins"] == sorted(policy.float_joins)
            if same and step.get("machine") == machine and step.get("predicted_from"):
                return _read(step)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{LOOP} is damaged ({error!r}): delete it") from error
    return None


def _read(step: Mapping[str, Any]) -> Prediction:
    low, high = map(float, step["predicted_interval"])
    return Prediction(float(step["predicted"]), (low, high), int(step["predicted_from"]))
