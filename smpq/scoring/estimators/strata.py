"""Pairs of a coalition and its complement, drawn without replacement by size."""

from __future__ import annotations

import itertools
import math

import numpy as np

from smpq.scoring.estimators.base import Coalitions, Floats

_MOST_LISTED = 4096


class Stratum:
    """The pairs whose smaller member has `size` players; of two members of equal size, the one with player 0 stands for
    the pair.
    """

    def __init__(self, players: int, size: int) -> None:
        """Draw nothing yet; `size` is from 1 to half of the players."""
        self.players = players
        self.size = size
        self.halves = 2 * size == players
        self.population = math.comb(players, size) // (2 if self.halves else 1)
        self._rows: list[Coalitions] = []
        self._seen: set[bytes] = set()
        self._listed: Coalitions | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_complete(self) -> bool:
        """Whether every pair has been drawn."""
        return len(self) == self.population

    def coalitions(self) -> Coalitions:
        """Return `[drawn, players]`: the smaller member of each pair, in the order in which they were drawn."""
        return np.array(self._rows, bool).reshape(len(self), self.players)

    def extend(self, count: int, generator: np.random.Generator) -> None:
        """Draw further pairs until there are `count`; at any count they are a simple random sample."""
        if self._listed is None and self.population <= _MOST_LISTED:
            members = [
                m for m in itertools.combinations(range(self.players), self.size) if not self.halves or m[0] == 0
            ]
            self._listed = np.zeros((self.population, self.players), bool)
            self._listed[np.arange(self.population)[:, None], generator.permutation(members)] = True
        if self._listed is not None:
            self._rows = list(self._listed[: max(count, len(self))])
        while len(self) < count:
            row = np.zeros(self.players, bool)
            row[generator.choice(self.players, self.size, replace=False)] = True
            row ^= self.halves and not row[0]
            if row.tobytes() not in self._seen:
                self._seen.add(row.tobytes())
                self._rows.append(row)

    def shapley_weights(self) -> Floats:
        """Return `[drawn, players]`: how much of each pair's half difference is in a player's Shapley value."""
        weight = 2 / math.comb(self.players, self.size)
        return np.where(self.coalitions(), weight / self.size, -weight / (self.players - self.size))


def sizes_to_draw(strata: list[Stratum], pairs: int) -> list[int]:
    """Return how many pairs each stratum should have of `pairs` in all.

    All of size 1, whose weights are largest; the others in proportion to the population times the root mean square of
    the weights, 1 / sqrt(s (n - s)), which is best for residuals of equal variance (Neyman 1934); at least two, at most
    all. Grows with `pairs`.
    """
    wanted = {0: strata[0].population}
    open_ones = list(range(1, len(strata)))
    while open_ones:
        left = max(pairs - sum(wanted.values()), 0)
        share = [
            (0.5 if strata[i].halves else 1) / math.sqrt(strata[i].size * (strata[i].players - strata[i].size))
            for i in open_ones
        ]
        quota = {i: left * part / sum(share) for i, part in zip(open_ones, share, strict=True)}
        full = [i for i in open_ones if quota[i] >= strata[i].population]
        short = [i for i in open_ones if quota[i] < 2]
        for i in full or short or open_ones:
            wanted[i] = strata[i].population if i in full else max(2, int(quota[i]))
            open_ones = [other for other in open_ones if other != i]
    return [wanted[i] for i in range(len(strata))]
