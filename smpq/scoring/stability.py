"""Decision stability: how often does each group get each format when the scores are drawn again from what was
sampled?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.formats.format import Format
from smpq.files import StabilityFile
from smpq.problem.policy import Space
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Problem, allocate

RESAMPLES = 40
_FEWEST_WALKS = 3
_SMALL_CHANGE = 0.05


@dataclass(frozen=True)
class Stability:
    """Share of `resamples` in which each group (by name) gets each format, under one budget."""

    frequencies: Mapping[str, Mapping[Format, float]]
    resamples: int

    def undecided(self) -> tuple[str, ...]:
        """Return the groups that get no format in nine of ten resamples: at this budget the scores cannot tell."""
        return tuple(name for name, row in self.frequencies.items() if max(row.values()) < StabilityFile.DECIDED)

    def change(self, other: Stability) -> float:
        """Return the mean over groups of the total variation distance between two sets of frequencies, from 0 to 1."""
        distances = [
            sum(
                abs(row.get(chosen, 0.0) - other.frequencies[name].get(chosen, 0.0))
                for chosen in dict.fromkeys((*row, *other.frequencies[name]))
            )
            / 2
            for name, row in self.frequencies.items()
        ]
        return sum(distances) / len(distances)

    def to_file(self, policy_key: str) -> StabilityFile:
        """Return the file form, which is about the policy with this key."""
        return StabilityFile(
            policy=policy_key,
            resamples=self.resamples,
            undecided=tuple(self.undecided()),
            frequencies={
                name: {str(chosen): share for chosen, share in row.items()} for name, row in self.frequencies.items()
            },
        )


def decision_stability(scores: Scores, space: Space, ceilings: Sequence[Ceiling], seed: int = 0) -> Stability | None:
    """Resample the walks with replacement, solve the allocation for the mean of each resample, and count.

    None when fewer than three walks were made: two resample to almost nothing new. Groups without a choice always get
    what they have. A bootstrap over scores (Efron 1979) applied to the decision; ours.
    """
    if scores.permutations < _FEWEST_WALKS:
        return None
    generator = np.random.default_rng(seed)
    counts: dict[str, dict[Format, int]] = {group.name: {} for group in space.groups}
    solved = 0
    for _ in range(RESAMPLES):
        drawn = generator.integers(scores.permutations, size=scores.permutations)
        values = {
            name: {
                chosen: float(np.mean([score.marginals[i] for i in drawn])) if score.marginals else 0.0
                for chosen, score in row.items()
            }
            for name, row in scores.entries.items()
        }
        policy = allocate(Problem(space, values, ceilings))
        if policy is None:
            return None
        solved += 1
        for name, chosen in policy.formats.items():
            counts[name][chosen] = counts[name].get(chosen, 0) + 1
    return Stability({name: {chosen: n / solved for chosen, n in row.items()} for name, row in counts.items()}, solved)


class UntilStable:
    """A stopping rule: true once the decision has changed little over two walks in a row."""

    def __init__(self, space: Space, ceilings: Sequence[Ceiling], seed: int = 0) -> None:
        """Keep the budget that the decision is about."""
        self._space = space
        self._ceilings = ceilings
        self._seed = seed
        self._last: Stability | None = None
        self._calm = 0

    def __call__(self, scores: Scores) -> bool:
        """Return whether the decision is stable, given the scores after one more walk."""
        now = decision_stability(scores, self._space, self._ceilings, self._seed)
        if now is not None and self._last is not None:
            self._calm = self._calm + 1 if now.change(self._last) <= _SMALL_CHANGE else 0
        self._last = now
        return self._calm >= 2
