"""Decision stability: how often does each group get each format when the scores are drawn again from what was
sampled?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.formats.format import Format
from smpq.files import StabilityFile
from smpq.problem.policy import Policy, Space
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Problem, Values, allocate

RESAMPLES = 20
_FEWEST_WALKS = 3
_TINY = 1e-300


@dataclass(frozen=True)
class Stability:
    """Share of `resamples` in which each group (by name) gets each format, under one budget."""

    frequencies: Mapping[str, Mapping[Format, float]]
    resamples: int

    def undecided(self) -> tuple[str, ...]:
        """Return the groups that get no format in nine of ten resamples: at this budget the scores cannot tell."""
        return tuple(name for name, row in self.frequencies.items() if max(row.values()) < StabilityFile.DECIDED)

    def to_file(self, policy_key: str) -> StabilityFile:
        """Return the file form, which is about the policy with this key."""
        return StabilityFile(
            policy=policy_key,
            resamples=self.resamples,
            allocation=None,
            undecided=tuple(self.undecided()),
            frequencies={
                name: {str(chosen): share for chosen, share in row.items()} for name, row in self.frequencies.items()
            },
        )


def decision_stability(scores: Scores, space: Space, ceilings: Sequence[Ceiling], seed: int = 0) -> Stability | None:
    """Resample the walks with replacement, solve the allocation for the mean of each resample, and count.

    None when fewer than three walks were made: two resample to almost nothing new; and for scores of pairs, which would
    have to be resampled with the values of moves. Groups without a choice always get
    what they have. A bootstrap over scores (Efron 1979) applied to the decision; ours.
    """
    if scores.permutations < _FEWEST_WALKS or scores.pairs:
        return None
    counts: dict[str, dict[Format, int]] = {group.name: {} for group in space.groups}
    solved = 0
    for values in _resampled(scores, RESAMPLES, seed):
        policy = allocate(Problem(space, values, ceilings))
        if policy is None:
            return None
        solved += 1
        for name, chosen in policy.formats.items():
            counts[name][chosen] = counts[name].get(chosen, 0) + 1
    return Stability({name: {chosen: n / solved for chosen, n in row.items()} for name, row in counts.items()}, solved)


def expected_gain(
    scores: Scores, space: Space, budgets: Sequence[Sequence[Ceiling]], seed: int = 0, negligible: float = 0.0
) -> float | None:
    """Return how much less the chosen policy would lose if the scores were known exactly, as a share of what it loses,
    or of `negligible` where it loses less.

    Under each resample of the walks: the value of the policy that is best there, minus that of the policy that the
    scores choose; their mean is the expected value of perfect information (Raiffa and Schlaifer 1961). The largest of
    the budgets, each some ceilings, counts. None when fewer than three walks were made, or no budget can be met.
    """
    if scores.permutations < _FEWEST_WALKS:
        return None
    values, gains = scores.values(), []
    for ceilings in budgets:
        chosen = allocate(Problem(space, values, ceilings))
        if chosen is None:
            continue
        differences = []
        for resampled in _resampled(scores, RESAMPLES, seed):
            best = allocate(Problem(space, resampled, ceilings))
            assert best is not None  # the ceilings are the same
            differences.append(_total(resampled, best) - _total(resampled, chosen))
        gains.append(float(np.mean(differences)) / max(abs(_total(values, chosen)), negligible, _TINY))
    return max(gains, default=None)


CUT_SHORT = "the end of the time"
"""Why sampling stopped where nobody waited longer."""


class UntilSettled:
    """A stopping rule: `stable` once more walks are expected to gain less than a share of what the policy loses, or
    CUT_SHORT when nobody waits any longer.
    """

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Sequence[Ceiling]],
        gain: float,
        seed: int = 0,
        enough: Callable[[], bool] = lambda: False,
        negligible: float = 0.0,
    ) -> None:
        """Keep the budgets that the decision is about, and the share. `enough` says that nobody waits any longer;
        `negligible` is a loss that nobody would notice.
        """
        self._enough = enough
        self._space = space
        self._budgets = budgets
        self._gain = gain
        self._seed = seed
        self._negligible = negligible

    def __call__(self, scores: Scores) -> str | None:
        """Return why to stop, given the scores after one more walk; None to go on."""
        if self._enough():
            return CUT_SHORT
        left = expected_gain(scores, self._space, self._budgets, self._seed, self._negligible)
        return "stable" if left is not None and left <= self._gain else None


def _resampled(scores: Scores, count: int, seed: int) -> Iterator[Values]:
    """Yield the mean scores of walks drawn with replacement."""
    generator = np.random.default_rng(seed)
    cells = [(name, chosen, score) for name, row in scores.entries.items() for chosen, score in row.items()]
    marginals = np.array([score.marginals or (0.0,) * scores.permutations for _, _, score in cells])
    for _ in range(count):
        drawn = generator.integers(scores.permutations, size=scores.permutations)
        means = marginals[:, drawn].mean(axis=1).tolist()
        values: dict[str, dict[Format, float]] = {name: {} for name in scores.entries}
        for (name, chosen, _), mean in zip(cells, means, strict=True):
            values[name][chosen] = mean
        yield values


def _total(values: Values, policy: Policy) -> float:
    return sum(values[name][chosen] for name, chosen in policy.formats.items())
