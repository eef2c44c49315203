"""Independent samples of Shapley values: collecting them, and knowing when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calib.errors import UserError
from smpq.scoring.estimators.base import Coalitions, Floats, Stable, Stopping
from smpq.scoring.estimators.counted import MOST_ROWS, CountedGame
from smpq.scoring.estimators.exact import affordable, enumerate_game
from smpq.scoring.estimators.result import Estimate, StopReason

FEWEST = 2
"""Independent samples that an interval needs."""
_GROWTH = 0.25


@dataclass(frozen=True)
class Design:
    """One sample whose coalitions do not depend on values: `[k, players]`, and how their values `[k]` give marginals
    `[players]`.
    """

    coalitions: Coalitions
    marginals: Callable[[Floats], Floats]


class Samples:
    """Independent, identically distributed samples `[players]`, whose mean is the estimate."""

    def __init__(self) -> None:
        self._rows: list[Floats] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sample: Floats) -> None:
        """Keep one sample."""
        self._rows.append(sample)

    def mean(self) -> Floats:
        """Return the estimate `[players]`."""
        return np.asarray(np.mean(self._rows, axis=0), float)

    def covariance(self) -> Floats:
        """Return the covariance `[players, players]` of the estimate, from two samples or more."""
        return np.atleast_2d(np.cov(self._rows, rowvar=False)) / len(self._rows)

    def until_next_check(self) -> int:
        """Return how many samples to draw before the next look at the stopping rules: a quarter more than there are."""
        return max(FEWEST, math.ceil(_GROWTH * len(self._rows)))

    def estimate(self, game: CountedGame, seed: int, name: str, reason: StopReason) -> Estimate:
        """Return the finished estimate."""
        covariance, count = self.covariance(), len(self._rows)
        return Estimate(
            self.mean(), np.sqrt(covariance.diagonal()), np.full(game.players, count - 1.0), covariance,
            np.full(game.players, count), game.evaluations, 0, seed, name, reason,
        )  # fmt: skip


def reason_to_stop(values: Floats, covariance: Floats, stopping: Stopping, stable: Stable | None) -> StopReason | None:
    """Return which of the two early rules holds, precision or a stable decision, if any."""
    if stopping.precision and math.sqrt(covariance.diagonal().max()) <= stopping.precision * float(values.std()):
        return "precision"
    return "stable" if stable is not None and stable(values, covariance) else None


def check_affords(stopping: Stopping, least: int, name: str) -> None:
    """UserError unless `least` evaluations are allowed."""
    if stopping.evaluations < least:
        raise UserError(
            f"the estimator {name} needs at least {least} evaluations for two independent samples, and with them an "
            "interval; "
            f"{stopping.evaluations} are allowed"
        )


def sample_designs(
    game: CountedGame,
    draw: Callable[[np.random.Generator], Design],
    least: int,
    stopping: Stopping,
    seed: int,
    stable: Stable | None,
    name: str,
) -> Estimate:
    """Evaluate independent designs until a rule of `stopping` or `stable` holds.

    1. Designs are evaluated many at once, up to the next look at the rules.
    2. The first design that no longer fits ends the sampling; which one it is depends on coalitions, never on values.
    3. When every coalition can be afforded and nothing asks to stop early, or half of them are known, the values are
       exact.

    Raises UserError when fewer than `least` evaluations, the cost of two designs, are allowed.
    """
    generator, samples = np.random.default_rng(seed), Samples()
    early = stopping.precision > 0 or stable is not None
    if not affordable(game.players, stopping):
        check_affords(stopping, least, name)
    while True:
        if affordable(game.players, stopping) and (not early or 2 * game.evaluations >= 2**game.players):
            return enumerate_game(game, seed, name)
        designs, full = _draw_batch(game, draw, generator, samples.until_next_check(), stopping)
        values = game(np.concatenate([design.coalitions for design in designs])) if designs else np.empty(0)
        for design in designs:
            samples.add(design.marginals(values[: len(design.coalitions)]))
            values = values[len(design.coalitions) :]
        if len(samples) >= FEWEST:
            reason = reason_to_stop(samples.mean(), samples.covariance(), stopping, stable) if early else None
            if reason is not None or full:
                return samples.estimate(game, seed, name, reason or "evaluations")


def _draw_batch(
    game: CountedGame,
    draw: Callable[[np.random.Generator], Design],
    generator: np.random.Generator,
    wanted: int,
    stopping: Stopping,
) -> tuple[list[Design], bool]:
    """Return up to `wanted` designs that fit, and whether the evaluations are used up."""
    designs: list[Design] = []
    new: set[bytes] = set()
    while len(designs) < wanted and len(new) < MOST_ROWS:
        design = draw(generator)
        new |= game.unknown(design.coalitions)
        if game.evaluations + len(new) > stopping.evaluations:
            return designs, True
        designs.append(design)
    return designs, False
