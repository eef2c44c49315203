"""Shapley values of (group, format) by permutation sampling."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from calib.declared import Declared, Interval, check_declared
from calib.formats.format import Format
from smpq.problem.policy import Group, Policy, Space
from smpq.scoring.scores import Score, Scores
from smpq.solve.allocate import Values
from smpq.value.evaluate import ValueFunction

_FEWEST_FOR_AN_INTERVAL = 2
_JITTER = 0.5
_BISECTIONS = 40


@dataclass(frozen=True)
class ScoringLimits:
    """When enough has been sampled.

    `evaluations`: how many new policies may be evaluated (the first pass and one permutation are always made); 0 asks
    for the first pass alone, the one-at-a-time scores. `precision`: the largest standard error, as a fraction of the
    spread of the scores, that is precise enough; 0 asks for all evaluations.
    """

    evaluations: Annotated[int, Declared("policies that may be evaluated", Interval(0))] = 600
    precision: Annotated[
        float, Declared("largest standard error, as a fraction of the spread", Interval(0, 1, below=True))
    ] = 0.0

    def __post_init__(self) -> None:
        check_declared(self)


def estimate(
    value: ValueFunction,
    space: Space,
    stopping: ScoringLimits,
    seed: int = 0,
    bits: tuple[float, float] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    value_name: str = "kl",
    stop: Callable[[Scores], str | None] = lambda _: None,
    folds: Sequence[ValueFunction] = (),
) -> Scores:
    """Estimate what each (group, format) contributes to the value.

    A player is a group; its move is a format. Castro et al. 2009 sample orders of the players; as a group has several
    moves, each sample also draws the policy that the walk ends at. The walk starts at the float model and moves one
    group after the other:

    1. At each step *every* format of the group is tried in the same context, so that formats are compared in pairs.
    2. The marginals along a walk sum to the value of its policy minus the value of the float model (efficiency); the
       scores thus predict the value of policies like those that are drawn.
    3. Policies are drawn near the efficient frontier of value against weight bits, over the whole range of bits or over
       `bits`: in contexts far from any plan that could be chosen, small differences drown in noise.
    4. The first pass tries every move alone; it costs one evaluation each and places the frontier.
    5. Each walk, and the first pass, is evaluated on another one of `folds`, the value on parts of the samples: for
       the same cost, more contexts on few samples say more than few contexts on many. Without folds on all samples.

    `value` is called with policies, `advance` with the number of policies evaluated after each, `stop` with the scores
    after each walk: the sampling stops with the reason that it gives (`smpq.scoring.stability`). Ours, after 1.2 and
    1.4 of the method (Kang et al., IJCAI 2025; Shapley-NAS, CVPR 2022).
    """
    sampler = _Sampler(space, np.random.default_rng(seed), advance)
    folds = folds or (value,)
    alone = sampler.alone(folds[0])
    low, high = bits if bits is not None else _bit_range(space)
    samples: dict[tuple[str, Format], list[float]] = {}
    ends: list[tuple[Policy, float]] = []
    per_walk = sum(len(sampler.moves(group)) for group in space.groups)

    def scores(stop_reason: str) -> Scores:
        entries = {
            group.name: {chosen: _score(space, group, chosen, samples, alone) for chosen in space.formats[group.name]}
            for group in space.groups
        }
        gaps = [
            abs(found - sum(entries[name][chosen].value for name, chosen in end.formats.items())) for end, found in ends
        ]
        estimator = "permutation" if samples else "one at a time"
        return Scores(
            entries,
            value_name,
            estimator,
            seed,
            sampler.count,
            len(ends) if samples else 0,
            stop_reason,
            statistics.fmean(gaps),
        )

    if not stopping.evaluations:
        end = sampler.draw_policy(alone, low, high)
        ends.append((end, sampler.change(end, folds[0])))
        return scores("evaluations")
    while True:
        fold = folds[(len(ends) + 1) % len(folds)]
        end = sampler.draw_policy(alone, low, high)
        for key, marginal in sampler.walk(end, fold).items():
            samples.setdefault(key, []).append(marginal)
        ends.append((end, sampler.change(end, fold)))
        if (
            stopping.precision
            and len(ends) >= _FEWEST_FOR_AN_INTERVAL
            and _relative_error(samples) <= stopping.precision
        ):
            return scores("precision")
        if (reason := stop(scores(""))) is not None:
            return scores(reason)
        if sampler.count + per_walk > stopping.evaluations:
            return scores("evaluations")


class _Sampler:
    def __init__(self, space: Space, generator: np.random.Generator, advance: Callable[[int], None]) -> None:
        self._space = space
        self._start = space.uniform(space.reference)
        self._generator = generator
        self._advance = advance
        self.count = 0

    def moves(self, group: Group) -> list[Format]:
        return [chosen for chosen in self._space.formats[group.name] if chosen != self._space.reference]

    def change(self, policy: Policy, value: ValueFunction) -> float:
        """Return what a policy changes against the float model."""
        return value(policy) - value(self._start)

    def evaluate(self, policies: Sequence[Policy], value: ValueFunction) -> list[float]:
        values = value.many(policies)
        for _ in policies:
            self.count += 1
            self._advance(self.count)
        return values

    def alone(self, value: ValueFunction) -> dict[str, dict[Format, float]]:
        baseline = value(self._start)
        moves = [(group.name, chosen) for group in self._space.groups for chosen in self.moves(group)]
        values = self.evaluate([self._start.with_format(*move) for move in moves], value)
        found: dict[str, dict[Format, float]] = {group.name: {} for group in self._space.groups}
        for (name, chosen), changed in zip(moves, values, strict=True):
            found[name][chosen] = changed - baseline
        return found

    def walk(self, end: Policy, value: ValueFunction) -> dict[tuple[str, Format], float]:
        """All policies of a walk are known beforehand, so they are evaluated together."""
        context = self._start
        steps: list[tuple[str, Format]] = []
        tried: list[Policy] = []
        for index in self._generator.permutation(len(self._space.groups)):
            group = self._space.groups[index]
            steps += [(group.name, chosen) for chosen in self.moves(group)]
            tried += [context.with_format(group.name, chosen) for chosen in self.moves(group)]
            context = context.with_format(group.name, end[group.name])
        marginals: dict[tuple[str, Format], float] = {}
        before = after = value(self._start)
        current = None
        for (name, chosen), found in zip(steps, self.evaluate(tried, value), strict=True):
            if name != current:
                before, current = after, name
            marginals[name, chosen] = found - before
            after = found if chosen == end[name] else after
        return marginals

    def draw_policy(self, alone: Values, low: float, high: float) -> Policy:
        """Return the policy of a random average number of weight bits that is best for jittered one-at-a-time
        scores.
        """
        wanted = self._generator.uniform(low, high)
        total = sum(group.parameters for group in self._space.groups)
        jitter = {
            (group.name, chosen): self._generator.lognormal(0.0, _JITTER)
            for group in self._space.groups
            for chosen in self._space.formats[group.name]
        }

        moves = {
            group.name: [
                (alone[group.name].get(chosen, 0.0) * jitter[group.name, chosen],
                 chosen.weight_bits * group.parameters / total, chosen)
                for chosen in self._space.formats[group.name]
            ]
            for group in self._space.groups
        }  # fmt: skip

        def best(price: float) -> dict[str, tuple[float, float, Format]]:
            return {name: max(row, key=lambda move: move[0] - price * move[1]) for name, row in moves.items()}

        cheap, dear = -12.0, 6.0  # powers of ten that bracket any price of a bit, in units of the value
        for _ in range(_BISECTIONS):
            middle = (cheap + dear) / 2
            bits = sum(share for _, share, _ in best(10**middle).values())
            cheap, dear = (middle, dear) if bits > wanted else (cheap, middle)
        return Policy({name: chosen for name, (_, _, chosen) in best(10**dear).items()})


def _bit_range(space: Space) -> tuple[float, float]:
    total = sum(group.parameters for group in space.groups)
    low, high = (
        sum(
            pick(chosen.weight_bits for chosen in space.formats[group.name]) * group.parameters
            for group in space.groups
        )
        / total
        for pick in (min, max)
    )
    return low, high


def _score(
    space: Space, group: Group, chosen: Format, samples: dict[tuple[str, Format], list[float]], alone: Values
) -> Score:
    if chosen == space.reference:
        return Score(0.0, 0.0, 0, 0.0)
    seen = samples.get((group.name, chosen))
    if seen is None:  # one context says nothing about the others: as uncertain as it is large
        return Score(alone[group.name][chosen], abs(alone[group.name][chosen]), 1, alone[group.name][chosen])
    error = (
        statistics.stdev(seen) / math.sqrt(len(seen))
        if len(seen) >= _FEWEST_FOR_AN_INTERVAL
        else max(abs(seen[0]), abs(seen[0] - alone[group.name][chosen]))
    )
    return Score(statistics.fmean(seen), error, len(seen), alone[group.name][chosen], tuple(seen))


def _relative_error(samples: dict[tuple[str, Format], list[float]]) -> float:
    means = [statistics.fmean(seen) for seen in samples.values()]
    errors = [statistics.stdev(seen) / math.sqrt(len(seen)) for seen in samples.values()]
    spread = statistics.pstdev(means)
    return max(errors) / spread if spread else 0.0
