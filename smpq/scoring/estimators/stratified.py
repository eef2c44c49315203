"""Shapley values from circular orders, in which every player has every position once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smpq.scoring.estimators.base import Floats, Game, Stable, Stopping, estimator
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.result import Estimate
from smpq.scoring.estimators.sampling import Design, sample_designs


@estimator("stratified")
@dataclass(frozen=True)
class Stratified:
    """One sample is a random circle of the players, and the coalitions are its arcs. Ours.

    1. The n walks around the circle, one from each player, form a Latin square: each player joins once at every
       position, so that no position counts more than another (the strata of Castro et al. 2017, section 3, with equal
       allocation).
    2. The same arcs give the n walks in the other direction, which are the reversed ones: 2n walks, all antithetic
       pairs, for n (n - 1) + 2 evaluations.
    3. Circles are independent: the standard errors are those of their mean, whatever the dependence inside one.
    """

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the mean marginals; UserError below 2n (n - 1) + 2 evaluations."""

        def draw(generator: np.random.Generator) -> Design:
            return circle(generator.permutation(players))

        least = 2 * players * (players - 1) + 2
        return sample_designs(CountedGame(game, players), draw, least, stopping, seed, stable, "stratified")


def circle(order: np.ndarray) -> Design:
    """Return the design of one circular order `[n]` of the players."""
    players = len(order)
    position = np.empty_like(order)
    position[order] = np.arange(players)
    offset = (position[None, :] - np.arange(players)[:, None]) % players
    # arcs[start, length] holds the players from `start` on; all those of length 0 are equal, and so are those of length
    # n
    arcs = offset[:, None, :] < np.arange(players + 1)[None, :, None]

    def marginals(values: Floats) -> Floats:
        table = values.reshape(players, players + 1)
        forward = np.diff(table, axis=1)
        backward = np.roll(table, 1, axis=0)[:, 1:] - table[:, :-1]
        total = np.zeros(players)
        for length in range(players):
            np.add.at(total, order[(np.arange(players) + length) % players], forward[:, length])
            np.add.at(total, order[(np.arange(players) - 1) % players], backward[:, length])
        return total / (2 * players)

    return Design(arcs.reshape(-1, players), marginals)
