"""Shapley values by walks through random orders of the players."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smpq.scoring.estimators.base import Coalitions, Floats, Game, Stable, Stopping, estimator
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.result import Estimate
from smpq.scoring.estimators.sampling import Design, sample_designs


@estimator("permutation")
@dataclass(frozen=True)
class Permutation:
    """One sample is one walk from the empty to the grand coalition. Castro et al. 2009, section 3."""

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the mean marginals; UserError below 2n evaluations."""

        def draw(generator: np.random.Generator) -> Design:
            order = generator.permutation(players)
            return Design(walk(order), lambda values: marginals_of_walk(order, values))

        return sample_designs(CountedGame(game, players), draw, 2 * players, stopping, seed, stable, "permutation")


@estimator("antithetic")
@dataclass(frozen=True)
class Antithetic:
    """One sample is the mean of a walk and of the walk in reverse order. Mitchell et al. 2022, section 4."""

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the mean marginals; UserError below 4n - 2 evaluations."""

        def draw(generator: np.random.Generator) -> Design:
            order = generator.permutation(players)
            back = order[::-1]

            def marginals(values: Floats) -> Floats:
                return (
                    marginals_of_walk(order, values[: players + 1]) + marginals_of_walk(back, values[players + 1 :])
                ) / 2

            return Design(np.concatenate([walk(order), walk(back)]), marginals)

        return sample_designs(CountedGame(game, players), draw, 4 * players - 2, stopping, seed, stable, "antithetic")


def walk(order: npt.NDArray[np.int64]) -> Coalitions:
    """Return `[n + 1, n]`: the coalitions from the empty one on, to which the players are added in this order."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return position[None, :] < np.arange(len(order) + 1)[:, None]


def marginals_of_walk(order: npt.NDArray[np.int64], values: Floats) -> Floats:
    """Return `[n]`, by player, how much the value `[n + 1]` changes when the player joins."""
    marginals = np.empty(len(order))
    marginals[order] = np.diff(values)
    return marginals
