"""Exact Shapley values by enumeration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calib.errors import UserError
from smpq.scoring.estimators.base import Coalitions, Floats, Game, Stable, Stopping, estimator
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.result import Estimate

MOST_PLAYERS = 20


@estimator("exact")
@dataclass(frozen=True)
class Exact:
    """Evaluates all 2^n coalitions: phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (V(S + i) - V(S)). Shapley
    1953.
    """

    def estimate(
        self,
        game: Game,
        players: int,
        stopping: Stopping,
        seed: int,
        stable: Stable | None = None,  # noqa: ARG002 - nothing to stop
    ) -> Estimate:
        """Return the exact values; UserError above 20 players, or when fewer than 2^n evaluations are allowed."""
        if players > MOST_PLAYERS:
            raise UserError(
                f"{players} players have 2^{players} coalitions: use the estimator adaptive above {MOST_PLAYERS} "
                "players"
            )
        if not affordable(players, stopping):
            raise UserError(
                f"{players} players have {2**players} coalitions and {stopping.evaluations} evaluations are allowed: "
                "allow them all, "
                "or use the estimator adaptive"
            )
        return enumerate_game(CountedGame(game, players), seed, "exact")


def affordable(players: int, stopping: Stopping) -> bool:
    """Return whether every coalition may be evaluated."""
    return players <= MOST_PLAYERS and 2**players <= stopping.evaluations


def all_coalitions(players: int) -> Coalitions:
    """Return `[2 ** players, players]`; the last player is the least significant bit of the row's number."""
    return (np.arange(2**players)[:, None] >> np.arange(players)[::-1] & 1).astype(bool)


def values_of_table(table: Floats, players: int) -> Floats:
    """Return the Shapley values `[players]` of `[2 ** players]` values in the order of `all_coalitions`."""
    sizes = all_coalitions(players).sum(axis=1)
    weights = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    values = []
    for player in range(players):
        split = table.reshape(-1, 2, 2 ** (players - 1 - player))
        without = weights[sizes.reshape(split.shape)[:, 0]]
        values.append(float((without * (split[:, 1] - split[:, 0])).sum()))
    return np.array(values)


def enumerate_game(game: CountedGame, seed: int, name: str) -> Estimate:
    """Evaluate every coalition that is not known yet; the standard errors are zero."""
    players = game.players
    values = values_of_table(game(all_coalitions(players)), players)
    return Estimate(
        values, np.zeros(players), np.full(players, np.inf), np.zeros((players, players)),
        np.full(players, 2 ** (players - 1)), game.evaluations, 0, seed, name, "exact",
    )  # fmt: skip
