"""What engines may take at best: the latency model at the lower end of its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from deploy.latency.designs import random_policies
from deploy.latency.model import LatencyModel
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling, Problem, allocate, nearest_feasible

_STARTS = (0.0, 0.5, 1.0)
_TANGENTS = 2
_TYPICAL = 32


@dataclass(frozen=True, kw_only=True)
class HopefulCost(CostModel):
    """The ratio to the float engine, so many standard errors (`errors`) of each policy's own prediction below it.

    That is not linear in what a policy is made of. The parts, which the solver goes by, are those of a linear cost that
    is nowhere lower, and equal for one policy.
    """

    latency: LatencyModel
    errors: float

    def total(self, policy: Policy) -> float:
        """Return what a policy costs."""
        predicted, error = self.latency.predict(policy)
        return predicted - self.errors * error


def hopeful_cost(model: LatencyModel, limit: float, errors: float, problem: Problem) -> CostModel:
    """Return the ratio to the float engine as a cost at the lower end of its intervals; without `errors` as predicted.

    The linear parts are exact for a good policy within `limit` and the problem. It is solved for in turn (the
    convex-concave procedure, Yuille and Rangarajan 2003), from the best policies within limits raised by some typical
    errors on.
    """

    def best_within(cost: CostModel, limit: float) -> Policy | None:
        return allocate(replace(problem, ceilings=[Ceiling(cost, limit), *problem.ceilings]))

    cost = model.cost_model()
    if not errors:
        return cost
    others = random_policies(model.space, _TYPICAL, 1)
    typical = math.sqrt(sum(model.predict(policy)[1] ** 2 for policy in others) / max(len(others), 1))
    found = []
    for share in _STARTS:
        plan = best_within(cost, limit + share * errors * typical)
        for _ in range(_TANGENTS):
            plan = best_within(model.tangent(plan, errors), limit) if plan is not None else None
        found += [plan] if plan is not None else []
    if not found:
        found = [nearest_feasible(replace(problem, ceilings=[Ceiling(cost, limit), *problem.ceilings]))]
    linear = model.tangent(max(found, key=lambda plan: _worth(problem, plan)), errors)
    return HopefulCost(**vars(linear), latency=model, errors=errors)


def likelihood(model: LatencyModel, policy: Policy, limit: float) -> float:
    """Return how likely a policy's engine is within a limit."""
    predicted, error = model.predict(policy)
    return NormalDist(predicted, error).cdf(limit)


def _worth(problem: Problem, policy: Policy) -> float:
    return sum(problem.values[group][chosen] for group, chosen in policy.formats.items())
