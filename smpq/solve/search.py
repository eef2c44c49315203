"""From scores to a policy: solve, then improve on the value itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from calib.formats.format import Format
from smpq.problem.policy import Policy, Space, canonical, every_policy
from smpq.solve.allocate import Ceiling, Neighbourhood, Problem, Values, allocate, explanation
from smpq.solve.effort import Effort
from smpq.solve.exchange import Exchanges
from smpq.solve.quadratic import best_or_explain
from smpq.solve.racing import race
from smpq.solve.within import is_within
from smpq.value.evaluate import ValueFunction

EXHAUSTIVE = 512
"""Up to so many policies, joins in float counted, are all evaluated."""
_DAMPING = 0.5
_EXCHANGES_AT_ONCE = 16
_PATIENCE = 2


@dataclass(frozen=True)
class Choice:
    """A policy and its value on the calibration data.

    `path` names each step that led to it with the value it had; `marginals` are the scores as they were refined on the
    way, from which a search under slightly different ceilings can start. `finalists` are the plans of all starts and
    the best others seen.
    """

    policy: Policy
    value: float
    path: tuple[tuple[str, float], ...]
    marginals: Values
    finalists: tuple[Policy, ...] = ()


def choose(
    value: ValueFunction,
    space: Space,
    starts: Mapping[str, Values],
    ceilings: Sequence[Ceiling],
    effort: Effort,
    excluded: Sequence[Policy] = (),
    advance: Callable[[str], None] = lambda _: None,
    folds: Sequence[ValueFunction] = (),
    enough: Callable[[], bool] = lambda: False,
) -> Choice:
    """Return the most valuable policy found within the ceilings.

    1. A space of at most 512 policies, joins in float counted, is searched completely: the result is the best there is.
    2. Otherwise the plan of each set of scores in `starts` is evaluated; the best one is the start.
    3. Rounds: measure what every single change does to the current plan, on another one of `folds` each time; solve
       again within fewer and fewer changes (the marginals of the rounds are averaged, so that the rounds do not
       oscillate); race these plans against the best seen (`smpq.solve.racing`).
    4. After each round, batches of exchanges: pairs of changes that promise most, raced likewise. Each batch starts at
       the best seen.
    5. It ends with the round that gains less than `effort.gain` of what the plan loses, or when `enough` says so.
    6. `folds` is `value` on equal parts of its samples; without them every policy is evaluated on all samples.
    7. Never returns a plan whose measured value is worse than the best seen. Impossible when no policy is within the
       ceilings.
    """
    problems = {name: Problem(space, values, ceilings, excluded) for name, values in starts.items()}
    if is_small(space):
        every = list(feasible(space, ceilings, excluded))
        if not every:
            raise explanation(next(iter(problems.values())))
        ranked = sorted(zip(value.many(every), every, strict=True), key=lambda pair: -pair[0])
        best, finalists = ranked[0][1], tuple(policy for _, policy in ranked[: effort.finalists])
        return Choice(best, value(best), (("all policies", value(best)),), next(iter(starts.values())), finalists)
    plans = {name: best_or_explain(problem).policy for name, problem in problems.items()}
    values = value.many(plans.values())
    path = list(zip(plans, values, strict=True))
    winner = max(path, key=lambda step: step[1])[0]
    search = _Search(value, folds or (value,), space, ceilings, excluded, plans[winner], starts[winner], effort)
    singles = sum(len(space.formats[group.name]) - 1 for group in space.groups)
    for number in range(effort.rounds):
        if search.left < singles or enough():
            break
        advance(f"round {number + 1}")
        before = search.best
        search.measure_singles(number, damping=_DAMPING if number else 0.0)
        search.solve_near(max(2, len(space.groups) // (2 + number)))
        path.append((f"round {number + 1}", value(search.best)))
        moved = search.exchange(0 if enough() else effort.exchanges)
        path += [(f"exchanges {number + 1}", value(search.best))] if moved else []
        if not search.gained(before):
            break
    if not effort.rounds and not enough() and search.exchange(effort.exchanges):
        path.append(("exchanges", value(search.best)))
    last = {policy.key(): policy for policy in (*search.ranked()[: effort.finalists], *plans.values())}
    return Choice(search.best, value(search.best), tuple(path), search.marginals, tuple(last.values()))


def confirm(choice: Choice, value: ValueFunction, unseen: ValueFunction) -> Choice:
    """Return the finalist that is best by `unseen`, the same value on samples that the search has not used.

    The search picks the best of many policies whose values differ by little, so its winner owes something to the
    samples it was judged on; a plan that only looked better loses here.
    """
    values = unseen.many(choice.finalists)
    best = max(zip(values, choice.finalists, strict=True), key=lambda pair: pair[0])[1]
    return replace(
        choice, policy=best, value=value(best), path=(*choice.path, ("best finalist on other samples", value(best)))
    )


class _Search:
    """The best policy seen, what is known about the moves around it, and what may still be spent."""

    def __init__(
        self,
        value: ValueFunction,
        folds: Sequence[ValueFunction],
        space: Space,
        ceilings: Sequence[Ceiling],
        excluded: Sequence[Policy],
        start: Policy,
        marginals: Values,
        effort: Effort,
    ) -> None:
        self.best = start
        self.marginals: dict[str, dict[Format, float]] = {group: dict(row) for group, row in marginals.items()}
        self.left = effort.evaluations
        self._gain = effort.gain
        self._float = space.uniform(space.reference)
        self._value = value
        self._folds = folds
        self._space = space
        self._ceilings = ceilings
        self._excluded = excluded
        self._exchanges = Exchanges(space, ceilings, excluded)
        self._seen: dict[str, Policy] = {start.key(): start}
        self._tried: set[str] = {start.key()}

    def gained(self, before: Policy) -> bool:
        """Whether the best policy is better than `before` by more than is worth nothing, as a share of what that loses
        against the float policy: whose value is 0 for divergences alone.
        """
        if self.best == before:
            return False
        known, found, lossless = self._value.many([before, self.best, self._float])
        return found - known > self._gain * abs(lossless - known)

    def measure_singles(self, number: int, damping: float) -> None:
        """Measure every single change of the best policy in a round; `damping` is the weight of what was known
        before.
        """
        moves = [
            (group.name, chosen)
            for group in self._space.groups
            for chosen in self._space.formats[group.name]
            if chosen != self.best[group.name]
        ]
        fold = self._folds[number % len(self._folds)]
        start, *values = fold.many([self.best, *(self.best.with_format(*move) for move in moves)])
        self.left -= len(moves)
        for group, row in self.marginals.items():
            anchor = row[self.best[group]]
            self.marginals[group] = {chosen: known - anchor for chosen, known in row.items()}
        for (group, chosen), changed in zip(moves, values, strict=True):
            self.marginals[group][chosen] = damping * self.marginals[group][chosen] + (1 - damping) * (changed - start)

    def solve_near(self, changes: int) -> None:
        """Evaluate the plans that the marginals promise most of, within fewer and fewer changes."""
        candidates: list[Policy] = []
        while changes >= 1:
            near = Neighbourhood(self.best, changes)
            candidate = allocate(Problem(self._space, self.marginals, self._ceilings, self._excluded, near))
            if candidate is not None and candidate != self.best and candidate not in candidates:
                candidates.append(candidate)
            changes = min(changes - 1, changes * 2 // 3)
        self._keep_best(candidates)

    def exchange(self, batches: int) -> bool:
        """Try batches of exchanges, each from the best policy, until two bring too little; return whether the policy
        changed.
        """
        start = self.best
        patience = _PATIENCE
        for _ in range(batches):
            count = min(_EXCHANGES_AT_ONCE, self.left)
            before = self.best
            candidates = self._exchanges.propose(self.best, self.marginals, count, self._tried)
            self._keep_best(candidates)
            patience = _PATIENCE if self.gained(before) else patience - 1
            if not candidates or not patience:
                break
        return self.best != start

    def ranked(self) -> list[Policy]:
        """Return the plans that were evaluated, the best one first."""
        seen = list(self._seen.values())
        return [
            policy for _, policy in sorted(zip(self._value.many(seen), seen, strict=True), key=lambda pair: -pair[0])
        ]

    def _keep_best(self, candidates: Sequence[Policy]) -> None:
        centre = self.best
        found = race(self._value, self._folds, centre, candidates)
        self.left -= len(candidates)
        self._tried |= {candidate.key() for candidate in candidates}
        self._seen |= {candidate.key(): candidate for candidate, _ in found.finalists}
        for candidate, gain in zip(candidates, found.gains, strict=True):
            self._exchanges.learn(centre, candidate, self.marginals, gain)
        for candidate, value in found.finalists[:1]:
            if value > self._value(centre):
                self.best = candidate


def is_small(space: Space) -> bool:
    """Whether all policies of a space are evaluated."""
    return sum(1 for _ in islice(every_policy(space), EXHAUSTIVE + 1)) <= EXHAUSTIVE


def feasible(space: Space, ceilings: Sequence[Ceiling], excluded: Sequence[Policy] = ()) -> Iterator[Policy]:
    """Yield every policy within the ceilings, in its canonical form."""
    without = {canonical(policy, space).key() for policy in excluded}
    for policy in every_policy(space):
        if policy.key() not in without and is_within(policy, ceilings):
            yield policy
