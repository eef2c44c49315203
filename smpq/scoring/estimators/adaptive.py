"""Shapley values from a surrogate that learns the game, corrected by what it misses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calib.errors import UserError
from smpq.scoring.estimators.base import Floats, Game, Stable, Stopping, estimator
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.exact import affordable, enumerate_game
from smpq.scoring.estimators.result import Estimate, StopReason
from smpq.scoring.estimators.sampling import check_affords, reason_to_stop
from smpq.scoring.estimators.strata import Stratum, sizes_to_draw
from smpq.scoring.estimators.surrogate import fit_surrogate

_GROWTH = 1.5
_INFLATION = 1.35
"""Factor on the standard errors. The kernel's parameters are fitted to the very values that are left out one at a time,
and errors of the surrogate at different coalitions are related, so that left-out residuals understate the error.
Measured, not derived: without it the standard errors are about 0.8 of the true ones in `benchmarks/shapley_coverage.py`
(0.7 to 1 in `estimator_error.py`).
"""


@estimator("adaptive")
@dataclass(frozen=True)
class Adaptive:
    """Pairs of complementary coalitions, and a Gaussian process as a control variate. Ours.

    1. The Shapley value is a weighted sum over pairs of half differences (V(S) - V(complement)) / 2; interactions of
       two and of any even number of players cancel in them (paired sampling: Covert and Lee 2021, section 4).
    2. Pairs are drawn by size, without replacement: all with a single player or its complement, and a sample of each
       other size.
    3. A surrogate learns the half differences; its Shapley values are known (`Kernel`). The estimate is those, plus the
       weighted residuals of the pairs drawn, plus for the pairs not drawn the mean of the residuals that each drawn
       pair had if it were left out of the fit (regression adjustment: Witter et al. 2025; with leave-one-out in place
       of folds). Efficiency is exact.
    4. Standard errors are those of stratified sampling without replacement of the left-out residuals, times a measured
       factor, with the degrees of freedom of Welch and Satterthwaite.

    At most `most_pairs` pairs, half as many as evaluations, go into the surrogate: its cost grows with their third
    power.
    """

    most_pairs: int = 2000

    def __post_init__(self) -> None:
        if self.most_pairs < 10:
            raise UserError("the surrogate of the estimator adaptive needs 10 pairs or more")

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the values; UserError below 2 (n + 1) evaluations and two pairs of each size from 2 to n / 2."""
        counted, generator = CountedGame(game, players), np.random.default_rng(seed)
        strata = [Stratum(players, size) for size in range(1, players // 2 + 1)]
        everything = affordable(players, stopping)
        early = stopping.precision > 0 or stable is not None
        if everything and not early:
            return enumerate_game(counted, seed, "adaptive")
        least = 1 + sum(sizes_to_draw(strata, 0)) if strata else 1
        if not everything:
            check_affords(stopping, 2 * least, "adaptive")
        pairs = 2 * least if early else stopping.evaluations // 2
        while True:
            pairs = min(pairs, stopping.evaluations // 2)
            if everything and 4 * pairs >= 2**players:
                return enumerate_game(counted, seed, "adaptive")
            for stratum, count in zip(strata, sizes_to_draw(strata, pairs - 1), strict=True):
                stratum.extend(count, generator)
            values, covariance, freedom = self._fit(counted, strata, generator)
            reason: StopReason | None = reason_to_stop(values, covariance, stopping, stable) if early else None
            if reason is not None or pairs == stopping.evaluations // 2:
                return Estimate(
                    values, np.sqrt(covariance.diagonal()), freedom, covariance,
                    np.full(players, 1 + sum(map(len, strata))), counted.evaluations, 0, seed, "adaptive",
                    reason or "evaluations",
                )  # fmt: skip
            pairs = int(_GROWTH * pairs)

    def _fit(
        self, game: CountedGame, strata: list[Stratum], generator: np.random.Generator
    ) -> tuple[Floats, Floats, Floats]:
        """Return values `[n]`, covariance `[n, n]` and degrees of freedom `[n]`."""
        members = np.concatenate([np.ones((1, game.players), bool), *(stratum.coalitions() for stratum in strata)])
        both = game(np.concatenate([members, ~members]))
        targets = (both[: len(members)] - both[len(members) :]) / 2
        surrogate = fit_surrogate(2.0 * members - 1, targets, self.most_pairs, generator)
        grand = np.full((1, game.players), 2 / game.players)
        weights = np.concatenate([grand, *(stratum.shapley_weights() for stratum in strata)])
        values = surrogate.shapley_values + surrogate.residuals @ weights
        covariance, squares, start = np.zeros((game.players, game.players)), np.zeros(game.players), 1
        for stratum in strata:
            drawn = slice(start, start + len(stratum))
            start += len(stratum)
            if stratum.is_complete:
                continue
            missed, count = weights[drawn] * surrogate.left_out[drawn, None], len(stratum)
            unseen = stratum.population - count
            values = values + unseen * missed.mean(axis=0)
            part = stratum.population * unseen / count * np.cov(missed, rowvar=False)
            covariance += part
            squares += part.diagonal() ** 2 / (count - 1)
        variance = covariance.diagonal()
        freedom = np.divide(variance**2, squares, out=np.full(game.players, np.inf), where=squares > 0)
        return values, _INFLATION**2 * covariance, freedom
