"""Engines across the whole range of latency, measured one by one with the latency model of the loop."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from calib.formats.format import Format
from deploy.latency.ladder import Ladder, Rung
from deploy.latency.loop import LatencyLoop
from deploy.latency.steps import Proposal, StopReason
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling, Problem, nearest_feasible
from smpq.solve.allocate import Values as Marginals

_TINY = 1e-6
_FASTER = 0.98
"""A policy is worth measuring as the fastest one when it is predicted to take less than this share of the fastest."""
_ROOM = 1.01
_NEAR = 0.1
"""Latencies that differ by less have plans that are alike, in shares of the float engine's time."""


class CurveLoop(LatencyLoop):
    """Asks and is told as `LatencyLoop` is; its goal has no limit: it looks for the best engine at every latency.

    1. The same experiments come first, uniform formats among them, and the same model is fitted.
    2. Then the fastest engine is looked for, as long as the model predicts one that is clearly faster.
    3. Then the widest gap between measured engines, none of which beats the other in both latency and value, is halved:
       the most valuable policy within its middle is built and measured, and the model is fitted again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ladder = Ladder()
        self._refined: dict[float, Marginals] = {}
        super().__init__(*args, **kwargs)

    @property
    def stop_reason(self) -> str:
        """Why nothing more is asked for; empty before that."""
        return self._state.stop_reason

    def _after_experiments(self) -> Proposal | None:
        for doubtful in self._state.in_doubt(self._reference.ratio):
            if self._could_be_chosen(doubtful.policy):
                return self._proposal("again", doubtful.policy)
        policy = self._fastest() or self._ladder.next(self._rungs(), self._best_within, self._is_new)
        if policy is not None:
            return self._proposal("proposal", policy)
        self._state.stop_reason = StopReason.COMPLETE
        return None

    def _rungs(self) -> list[Rung]:
        """Return what is measured to be faster than the float engine, and the float engine."""
        reference = self._reference
        known = [
            o
            for o in self._state.observed.values()
            if o.ratio < 1.0 and o.policy != reference.policy and self._could_be_chosen(o.policy)
        ]
        return [Rung(o.policy, o.ratio, self._value(o.policy)) for o in (*known, reference)]

    def _fastest(self) -> Policy | None:
        """Return the most valuable policy near the one that is predicted to be fastest, if that is clearly faster than
        all others.
        """
        left_out = [refusal.policy for refusal in self._state.refusals if not refusal.blamed]
        ceilings = [Ceiling(self._model.cost_model(), _TINY)]
        quickest = nearest_feasible(Problem(self._space, {}, ceilings, left_out))
        predicted, _ = self._model.predict(quickest)
        if predicted >= _FASTER * min(rung.cost for rung in self._rungs()):
            return None
        found = self._best_within(predicted * _ROOM) if predicted > 0 else None
        return next((policy for policy in (found, quickest) if policy is not None and self._is_new(policy)), None)

    def _best_within(self, limit: float) -> Policy | None:
        """Return the most valuable policy within a latency.

        What single changes of a plan are worth is measured near some latencies; between them those of the nearest one
        stand beside the scores.
        """
        goal, starts = self.goal, self._state.marginals
        near = min(self._refined, key=lambda latency: abs(latency - limit), default=math.inf)
        if abs(near - limit) <= _NEAR:
            self._state.marginals = {**starts, "refined": self._refined[near]}
        self.goal = replace(goal, limit=limit)
        choice = self._search(self._ceiling(0.0, limit))
        self.goal, self._state.marginals = goal, starts
        if choice is None:
            return None
        if abs(near - limit) > _NEAR:
            self._refined[limit] = choice.marginals
        return choice.policy

    def _leave_out(self, blamed: Collection[tuple[str, Format]]) -> None:
        super()._leave_out(blamed)
        self._refined.clear()  # of formats that are not offered any more
