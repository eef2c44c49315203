"""The closed loop: measured latency of whole engines prices the formats until prediction, measurement and budget agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.latency import LatencyModel, Observation, designed_policies, fit
from smpq.allocate import Ceiling, Problem, Values, allocate, nearest_feasible
from smpq.evaluate import ValueFunction
from smpq.policy import Policy, Space
from smpq.search import EXHAUSTIVE, Choice, Effort, choose

MeasurePolicy = Callable[[Policy], Observation]

_FEWEST_DESIGNED = 6
_MOST_DESIGNED = 14
_OPTIMISM = 1.5
_TYPICAL = 32


@dataclass(frozen=True)
class Step:
    """One whole-engine measurement and what was predicted for it beforehand; ratios to the float engine, 95 % intervals."""

    label: str
    policy: Policy
    predicted: float
    predicted_interval: tuple[float, float]
    observation: Observation
    met: bool


@dataclass(frozen=True)
class Outcome:
    """The best policy whose measured latency meets the limit, or the fastest one found when none does."""

    policy: Policy
    value: float
    observation: Observation
    met: bool
    stop_reason: str
    steps: tuple[Step, ...]
    model: LatencyModel


@dataclass(frozen=True)
class LoopSettings:
    """`measurements` is the most engines that are measured, designed experiments included."""

    measurements: int = 40
    seed: int = 0


class LatencyLoop:
    """Finds the most valuable policy whose engine is measured to be fast enough.

    1. Engines of designed policies are measured and the latency model is fitted.
    2. The search proposes the most valuable policy that the model predicts to meet the limit; it is built and measured, and
       the model is fitted again. A policy that is measured to miss the limit is never proposed again.
    3. When the proposal is one that is known to meet the limit, the search is repeated with the limit raised by the model's
       uncertainty: a more valuable policy that might just meet it is measured as well. Nothing is left then that is likely better.
    4. A policy meets the limit when the upper end of the 95 % interval of its ratio does.
    """

    def __init__(
        self,
        space: Space,
        pairs: Sequence[tuple[str, str]],
        value: ValueFunction,
        measure: MeasurePolicy,
        known: Sequence[Observation] = (),
        settings: LoopSettings | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`known` are observations of an earlier session of the same run, `announce` is told about each step."""
        self._space = space
        self._pairs = pairs
        self._value = value
        self._measure = measure
        self._settings = settings or LoopSettings()
        self._announce = announce
        self._observed: dict[str, Observation] = {o.policy.key(): o for o in known}
        self._steps: list[Step] = []

    def run(self, limit: float, ceilings: Sequence[Ceiling], starts: Mapping[str, Values], effort: Effort) -> Outcome:
        """Search under a limit on the ratio to the float engine and further ceilings on other costs."""
        formats = {chosen for row in self._space.formats.values() for chosen in row}
        designed = min(_MOST_DESIGNED, max(_FEWEST_DESIGNED, len(self._space.groups) // 2 + 2 * len(formats)))
        for policy in designed_policies(self._space, min(designed, self._space.size()), self._settings.seed):
            self._observe(policy, "experiment", self._fit([step.observation for step in self._steps]), limit)
        model = self._fit()
        marginals = starts
        stop_reason = "measurements"
        optimism = 0.0
        while len(self._steps) < self._settings.measurements:
            proposal = self._propose(model, limit, optimism, ceilings, marginals, effort)
            best = self._best(limit, ceilings)
            if proposal is None and optimism == 0.0 and best is None:
                outcome = self._closest(model, limit, ceilings)
                if outcome is None:
                    stop_reason = "the limit is out of reach"
                    break
                self._observe(outcome, "closest", model, limit)
                model = self._fit()
                continue
            better = proposal is not None and (best is None or proposal.value > self._value(best.policy))
            if proposal is not None and better and proposal.policy.key() not in self._observed:
                self._observe(proposal.policy, "proposal" if optimism == 0.0 else "optimistic", model, limit)
                model = self._fit()
                if self._space.size() > EXHAUSTIVE:
                    marginals = {"refined": proposal.marginals}
                    effort = replace(effort, rounds=0)
                optimism = 0.0 if best is None else optimism
                continue
            if optimism == 0.0:
                optimism = _OPTIMISM
                continue
            stop_reason = "no other policy within the limit is likely to be better"
            break
        return self._outcome(limit, ceilings, stop_reason, model)

    def _propose(
        self,
        model: LatencyModel,
        limit: float,
        optimism: float,
        ceilings: Sequence[Ceiling],
        starts: Mapping[str, Values],
        effort: Effort,
    ) -> Choice | None:
        """Return the best policy that may meet the limit by the model; those that were measured to miss it are left out."""
        raised = limit + optimism * self._uncertainty(model)
        missed = [o.policy for o in self._observed.values() if upper(o) > limit]
        latency = [Ceiling(model.cost_model(1.0), raised), *ceilings]
        if allocate(Problem(self._space, next(iter(starts.values())), latency, missed)) is None:
            return None
        return choose(self._value, self._space, starts, latency, effort, missed)

    def _closest(self, model: LatencyModel, limit: float, ceilings: Sequence[Ceiling]) -> Policy | None:
        """Return the policy that the model takes for the nearest to the limit, unless it was measured already."""
        problem = Problem(self._space, {}, [Ceiling(model.cost_model(1.0), limit), *ceilings])
        policy = nearest_feasible(problem)
        return None if policy.key() in self._observed else policy

    def _observe(self, policy: Policy, label: str, model: LatencyModel, limit: float) -> None:
        observation = self._observed.get(policy.key())
        if observation is None:
            observation = self._measure(policy)
            self._observed[policy.key()] = observation
        predicted, error = model.predict(policy)
        interval = (predicted - 1.96 * error, predicted + 1.96 * error)
        self._steps.append(Step(label, policy, predicted, interval, observation, upper(observation) <= limit))
        self._announce(f"{label} {len(self._steps)}: {observation.ratio:.3f}x of float, predicted {predicted:.3f}")

    def _fit(self, observations: Sequence[Observation] | None = None) -> LatencyModel:
        """Fit to the given observations, or to all there are; the float engine's own ratio is known beforehand."""
        reference = Observation(self._space.uniform(self._space.reference), 1.0, 0.0)
        return fit(self._space, self._pairs, [reference, *(self._observed.values() if observations is None else observations)])

    def _uncertainty(self, model: LatencyModel) -> float:
        """Return the typical standard error of a prediction, the root mean square over policies of the designed kind."""
        others = designed_policies(self._space, _TYPICAL, self._settings.seed + 1)
        return math.sqrt(sum(model.predict(policy)[1] ** 2 for policy in others) / max(len(others), 1))

    def _within(self, policy: Policy, ceilings: Sequence[Ceiling]) -> bool:
        return all(ceiling.model.total(policy) <= ceiling.limit * (1 + 1e-9) for ceiling in ceilings)

    def _best(self, limit: float, ceilings: Sequence[Ceiling]) -> Observation | None:
        met = [
            o for o in self._observed.values() if upper(o) <= limit and self._allowed(o.policy) and self._within(o.policy, ceilings)
        ]
        return max(met, key=lambda o: self._value(o.policy), default=None)

    def _allowed(self, policy: Policy) -> bool:
        return all(policy[group.name] in self._space.formats[group.name] for group in self._space.groups)

    def _outcome(self, limit: float, ceilings: Sequence[Ceiling], stop_reason: str, model: LatencyModel) -> Outcome:
        best = self._best(limit, ceilings)
        chosen = best
        if chosen is None:
            allowed = [o for o in self._observed.values() if self._allowed(o.policy)]
            within = [o for o in allowed if self._within(o.policy, ceilings)]
            chosen = min(within or allowed, key=lambda o: o.ratio)
        return Outcome(chosen.policy, self._value(chosen.policy), chosen, best is not None, stop_reason, tuple(self._steps), model)


def upper(observation: Observation) -> float:
    """Return the upper end of the 95 % interval of a measured ratio."""
    return observation.ratio + 1.96 * observation.standard_error
