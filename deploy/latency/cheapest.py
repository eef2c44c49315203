"""The closed loop for a budget on the loss: the policy whose engine is measured to be fastest of those that are
allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploy.latency.finalists import Finalist
from deploy.latency.loop import OPTIMISM, LatencyLoop
from deploy.latency.observed import Observation
from deploy.latency.steps import Outcome, Proposal, StopReason
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling, Problem, nearest_feasible
from smpq.solve.cheapest import cheapest

_TINY = 1e-6


class CheapestLoop(LatencyLoop):
    """Asks and is told as `LatencyLoop` is; its goal's limit is the slowest engine that is of use, 1 without another
    one.

    1. The same experiments come first, and the same model is fitted.
    2. Then the cheapest policy is searched by bisection: the most valuable policy within a latency that the model
       predicts, asked whether it is allowed. It is built and measured, and the model is fitted again.
    3. The search ends when no policy that is allowed is predicted to be faster than the fastest that was measured.
    """

    def __init__(self, *args: Any, allowed: Callable[[Policy], bool], **kwargs: Any) -> None:
        """`allowed` says whether a policy loses little enough; it is asked about one policy after the other."""
        self._may = allowed
        super().__init__(*args, **kwargs)

    def _after_experiments(self) -> Proposal | None:
        policy = self._next()
        if policy is not None:
            return self._proposal("proposal", policy)
        self._state.stop_reason = StopReason.FASTEST
        return None

    def outcome(self) -> Outcome:
        """Return the fastest policy so far, of those that are allowed, or else the one that loses least."""
        best = self._best()
        chosen = best or self._closest_known()
        reason = self._state.stop_reason or StopReason.EARLY
        steps = tuple(self._state.steps)
        value = self._value(chosen.policy)
        finalists = (Finalist(best.policy, value, None),) if best is not None else ()
        return Outcome(chosen.policy, value, chosen, best is not None, reason, steps, self._model, finalists)

    def _best(self) -> Observation | None:
        """Return the fastest of what was measured and is allowed; the faster ones are asked about first."""
        found = sorted(self._meeting(), key=lambda observation: observation.upper)
        return next((observation for observation in found if self._allows(observation.policy)), None)

    def _closest_known(self) -> Observation:
        """Return the most valuable of what is within the other ceilings, since nothing that is allowed was found."""
        within = [o for o in self._state.observed.values() if self._could_be_chosen(o.policy)]
        return max(within, key=lambda o: self._value(o.policy), default=self._reference)

    def _allows(self, policy: Policy) -> bool:
        return policy == self._reference.policy or self._may(policy)

    def _next(self) -> Policy | None:
        """Return the policy that is predicted to be faster than the fastest known, carefully first, then
        optimistically.
        """
        best = self._best()
        high = best.upper if best is not None else self.goal.limit
        for optimism in (0.0, OPTIMISM):
            found = self._cheapest(high, optimism)
            if found is not None and self._is_new(found):
                return found
        return None

    def _cheapest(self, high: float, optimism: float) -> Policy | None:
        goal = self.goal
        ceilings = [Ceiling(self._model.cost_model(), _TINY)]

        def within(limit: float) -> Policy | None:
            self.goal = replace(goal, limit=limit)
            choice = self._search(self._ceiling(optimism, limit))
            self.goal = goal
            return choice.policy if choice is not None else None

        def cost(policy: Policy) -> float:
            predicted, error = self._model.predict(policy)
            return predicted - optimism * error

        low = max(cost(nearest_feasible(Problem(self._space, {}, ceilings))), _TINY)
        return cheapest(within, cost, self._allows, low, high)
