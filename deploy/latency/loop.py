"""The closed loop: measured latency of whole engines prices the formats until prediction, measurement and budget
agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from operator import itemgetter

from calib.formats.format import Format
from deploy.latency.designs import designed_policies
from deploy.latency.experiments import Experiments, offered
from deploy.latency.finalists import judged, lasting_first
from deploy.latency.hopeful import hopeful_cost, likelihood
from deploy.latency.model import LatencyModel, fit
from deploy.latency.observed import Observation, Observe, Refusal
from deploy.latency.state import LoopState
from deploy.latency.steps import Goal, LoopSettings, Outcome, Proposal, Step, StopReason, step_of
from deploy.latency.suspects import without
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space, canonical
from smpq.solve.allocate import Ceiling, Impossible, Problem, completed, nearest_feasible, place_joins
from smpq.solve.search import Choice, choose, is_small
from smpq.solve.within import is_within
from smpq.value.evaluate import ValueFunction

OPTIMISM = 1.5
"""How many of its standard errors a policy may be predicted above the limit before it is taken for too slow."""
_LEAST = 0.25
"""A measurement is worth it for this share of `Effort.gain`: likelihoods near a limit are rough."""
_SEARCHES = ((0.0, (True,)), (OPTIMISM, (True, False)))
"""Optimism of the searches for one proposal, and whether they are quick; the next follows where one finds nothing."""
_STEPS_OF_OPTIMISM = (0.0, 0.75, -0.75, 1.5)


class LatencyLoop:
    """Finds the most valuable policy whose engine is measured to be fast enough. `ask` says what to measure next,
    `tell` what came of it.

    1. Engines of designed policies are measured and the latency model is fitted. Formats over which the runtime may
       refuse an engine (`doubtful`) come last, all at once.
    2. The search proposes the most valuable policy that the model predicts to meet the limit, with joins placed where
       they are fastest; it is built and measured, and the model is fitted again. A policy that is measured to miss the
       limit is never proposed again.
    3. Searches after the first one solve with what is known of single changes. Where that finds nothing new, policies
       count whose own prediction is at most `OPTIMISM` of its standard errors too slow, and of these the one that is
       expected to gain most, unless that is next to nothing (`Effort.gain`), or nothing that is noticed.
    4. Where nothing is found there either, a thorough search exchanges formats too. Nothing likely better is left then.
    5. A policy meets the limit when the upper end of the 95 % interval of its ratio does. One that is just within it
       was likely lucky (`deploy.latency.observed.LASTING`): the search aims lower, and such a policy is the outcome
       only where it loses clearly less. It may be measured again, as one that later measurements cast doubt on: at
       once where it would end the search.
    6. What does not build is left out from then on: the formats that the runtime blames. Where it blames none, those
       that are doubtful and in no engine that was built; without any, the formats of the policy are searched by halves
       for the one that is to blame.
    7. The outcome is the policy, of those that meet the limit, that is best on samples that the search has not used
       (`unseen`); what is measured next does not depend on these.
    8. Where nothing meets the limit, the policy that is predicted to be nearest to it is measured as long as that is
       nearer than what was measured. Where nothing measured is faster than the float engine, the float engine is the
       outcome.
    9. A policy that meets the limit, and is no lucky one, ends the search where all that it loses is not noticed.
    """

    def __init__(
        self,
        space: Space,
        edges: Sequence[Edge],
        value: ValueFunction,
        goal: Goal,
        known: Sequence[Observation] = (),
        settings: LoopSettings | None = None,
        refusals: Sequence[Refusal] = (),
        unseen: ValueFunction | None = None,
        doubtful: Collection[tuple[str, Format]] = frozenset(),
    ) -> None:
        """`known` and `refusals` are what the run has found before; `unseen` is `value` on other samples."""
        self._space = self._whole_space = space
        self._edges = edges
        self._value = value
        self._unseen = unseen
        self.goal = goal
        self._settings = settings or LoopSettings()
        self._reference = Observation(space.uniform(space.reference), 1.0, 0.0)
        observed = [replace(o, policy=canonical(o.policy, space)) for o in known]
        self._state = LoopState({o.policy.key(): o for o in observed}, marginals=dict(goal.starts))
        count = min(self._settings.designed, space.size())
        designed = designed_policies(space, edges, count, self._settings.seed, doubtful)
        self._experiments = Experiments(designed, space, doubtful)
        self._model = self._fit()
        for refusal in refusals:
            self._take_refusal(refusal)
        self._learn()

    def run(
        self,
        measure: Observe,
        announce: Callable[[str], None] = lambda _: None,
        keep: Callable[[Sequence[Step]], None] = lambda _: None,
    ) -> Outcome:
        """Measure what `ask` proposes until it proposes nothing; `announce` is told about each step, `keep` is given
        all steps so far.
        """
        while (proposal := self.ask()) is not None:
            found, offered = measure(proposal.policy), self._choices()
            self.tell(proposal, found)
            keep(self._state.steps)
            announce(f"{proposal.label} {len(self._state.steps)}: {self._state.steps[-1].in_words()}")
            if left_out := sorted(f"{chosen} on {group}" for group, chosen in offered - self._choices()):
                announce(f"not asked for again, since it does not build: {', '.join(left_out)}")
        return self.outcome()

    def ask(self) -> Proposal | None:
        """Return the policy to measure next; None when no further measurement would help."""
        if self.goal.enough():  # the outcome says StopReason.EARLY, and the next command goes on
            return None
        if self._state.counted >= self._settings.measurements:
            self._state.stop_reason = StopReason.COUNT
            return None
        if self._suffices():
            self._state.stop_reason = StopReason.SUFFICES
            return None
        following = self._following()
        return following[0] if following else self._after_experiments()

    def _suffices(self) -> bool:
        """Whether a policy that is surely within the limit loses nothing that is noticed."""
        sure = [each.policy for each in self._meeting() if each.confirmed(self.goal.limit) and not each.doubtful]
        return any(self._loses_nothing(policy) for policy in sure)

    def _loses_nothing(self, policy: Policy) -> bool:
        return self.goal.unnoticed > 0 and -self._value(policy) < self.goal.unnoticed

    def _after_experiments(self) -> Proposal | None:
        best = self._best()
        lost = abs(self._value(best.policy)) if best is not None else 0.0
        for optimism, quickly in _SEARCHES:
            ceiling = self._ceiling(optimism, self._state.aim(self.goal.limit))
            for found in (self._search(ceiling, quick=quick) for quick in quickly):
                policies = [] if found is None else [found.policy, *(found.finalists if optimism else ())]
                gains = [(self._gain(policy, best), policy) for policy in policies if self._is_new(policy)]
                gain, policy = max(gains, key=itemgetter(0), default=(0.0, self._reference.policy))
                if gain > _LEAST * self.goal.effort.gain * lost:
                    expected = gain / lost if lost else None
                    return replace(self._proposal("optimistic" if optimism else "proposal", policy), gain=expected)
        if best is None and (closest := self._closest()) is not None:
            return closest
        self._state.stop_reason = StopReason.OUT_OF_REACH if best is None else StopReason.EXHAUSTED
        return None

    def ask_several(self, count: int) -> list[Proposal]:
        """Return up to `count` policies to measure in one go: the experiments first, then proposals from careful to
        optimistic ones.
        """
        if (following := self._following()) and not self._suffices():
            return following[:count]
        found: dict[str, Proposal] = {}
        first = self.ask()
        for policy, label in [(first.policy, first.label)] if first is not None else []:
            found[policy.key()] = self._proposal(label, policy)
        for optimism in _STEPS_OF_OPTIMISM if found else ():
            choice = self._search(self._ceiling(optimism, self._state.aim(self.goal.limit)))
            if choice is not None and self._is_new(choice.policy):
                found.setdefault(choice.policy.key(), self._proposal("proposal", choice.policy))
        return list(found.values())[:count]

    def tell(self, proposal: Proposal, found: Observation | Refusal) -> None:
        """Take in a measurement, or that the engine did not build; the model is fitted again."""
        if isinstance(found, Observation):
            found = self._state.keep(found)
        self._state.steps.append(step_of(proposal, found, self.goal.limit))
        if isinstance(found, Refusal):
            self._take_refusal(found)
        else:
            self._model = self._fit()
        self._learn()

    def outcome(self) -> Outcome:
        """Return the best policy so far, of those that meet the limit by its value on unseen samples."""
        met = self._meeting()
        finalists = judged([each.policy for each in met], self._value, self._unseen)
        if finalists:
            finalists = lasting_first(finalists, {each.policy.key() for each in met if each.confirmed(self.goal.limit)})
            chosen = next(each for each in met if each.policy == finalists[0].policy)
        else:
            candidates = [o for o in self._state.observed.values() if offered(o.policy, self._space)]
            within = [o for o in candidates if is_within(o.policy, self.goal.ceilings)]
            chosen = min([self._reference, *(within or candidates)], key=lambda each: each.upper)
        reason = self._state.stop_reason or StopReason.EARLY
        steps = tuple(self._state.steps)
        return Outcome(chosen.policy, self._value(chosen.policy), chosen, bool(met), reason, steps, self._model,
                       finalists)  # fmt: skip

    def _following(self) -> list[Proposal]:
        """Return what to measure before the search proposes anything; first once more what would end it, if true."""
        again = [o.policy for o in self._state.unconfirmed(self.goal.limit) if self._could_be_chosen(o.policy)]
        found = [("again", policy) for policy in again if self._loses_nothing(policy)]
        found += self._experiments.following(self._state, self._space)
        return [self._proposal(label, policy) for label, policy in found]

    def _learn(self) -> None:
        """Leave out what refusals that blame nothing have come down to."""
        for accused in self._experiments.to_blame(self._state, self._space):
            self._leave_out(accused)

    def _ceiling(self, optimism: float, limit: float) -> Ceiling:
        """Return a limit on the ratio to the float engine, so many standard errors below the model's predictions."""
        marginals = next(iter(self._state.marginals.values()))
        problem = Problem(self._space, marginals, self.goal.ceilings, self._state.left_out(self.goal.limit))
        return Ceiling(hopeful_cost(self._model, limit, optimism, problem), limit)

    def _search(self, ceiling: Ceiling, *, quick: bool = False) -> Choice | None:
        """Return the best policy within the ceiling and the goal's other ones, of those that are not left out. The
        first search is thorough; a `quick` one solves with what that has learned of single changes.
        """
        goal, state = self.goal, self._state
        left_out, ceilings = state.left_out(goal.limit), [ceiling, *goal.ceilings]
        effort = goal.effort
        if "refined" in state.marginals:
            effort = replace(effort, rounds=0, exchanges=0 if quick else effort.exchanges)
        try:
            choice = choose(self._value, self._space, state.marginals, ceilings, effort, left_out, folds=goal.folds,
                            enough=goal.enough)  # fmt: skip
        except Impossible:
            return None
        if not is_small(self._space):
            state.marginals = {"refined": choice.marginals}
        policy = canonical(choice.policy, self._space)
        placed = place_joins(policy, Problem(self._space, {}, ceilings, left_out))
        # a join may be worth more where it is slower, as long as the policy is within the limit there
        best = placed if self._value(placed) >= choice.value else policy
        return replace(choice, policy=best, value=self._value(best))

    def _gain(self, policy: Policy, best: Observation | None) -> float:
        """Return what measuring a policy is expected to gain in value,
        or its chance where nothing meets the limit yet.
        """
        gained = self._value(policy) - self._value(best.policy) if best is not None else 1.0
        noticed = best is None or gained > self.goal.unnoticed
        return max(gained, 0.0) * likelihood(self._model, policy, self._state.aim(self.goal.limit)) if noticed else 0.0

    def _closest(self) -> Proposal | None:
        """Return the policy that is predicted to be nearest to the limit, unless one that was measured is nearer."""
        left_out = [refusal.policy for refusal in self._state.refusals if not refusal.blamed]
        ceilings = [Ceiling(self._model.cost_model(), self.goal.limit), *self.goal.ceilings]
        policy = nearest_feasible(Problem(self._space, {}, ceilings, left_out))
        proposal = self._proposal("closest", policy)
        nearest = min((o.ratio for o in self._state.observed.values()), default=math.inf)
        return proposal if self._is_new(policy) and proposal.predicted < nearest else None

    def _proposal(self, label: str, policy: Policy) -> Proposal:
        predicted, error = self._model.predict(policy)
        return Proposal(label, policy, predicted, (predicted - 1.96 * error, predicted + 1.96 * error),
                        len(self._state.observed))  # fmt: skip

    def _fit(self) -> LatencyModel:
        return fit(self._whole_space, self._edges, list(self._state.observed.values()))

    def _take_refusal(self, refusal: Refusal) -> None:
        self._state.refusals.append(refusal)
        self._leave_out(refusal.blamed)

    def _leave_out(self, blamed: Collection[tuple[str, Format]]) -> None:
        self._space = without(self._space, blamed)
        self._state.marginals = {
            start: completed(values, self._space) for start, values in self._state.marginals.items()
        }

    def _choices(self) -> set[tuple[str, Format]]:
        return {(name, chosen) for name, row in self._space.formats.items() for chosen in row}

    def _is_new(self, policy: Policy) -> bool:
        return policy.key() != self._reference.policy.key() and self._state.is_new(policy, self.goal.limit)

    def _meeting(self) -> list[Observation]:
        """Return what is measured to meet the limit and the other ceilings."""
        known = {**self._state.observed, self._reference.policy.key(): self._reference}.values()
        return [o for o in known if o.upper <= self.goal.limit and self._could_be_chosen(o.policy)]

    def _best(self) -> Observation | None:
        """Return the best of these on the samples of the search."""
        return max(self._meeting(), key=lambda o: self._value(o.policy), default=None)

    def _could_be_chosen(self, policy: Policy) -> bool:
        return offered(policy, self._space) and is_within(policy, self.goal.ceilings)
