"""Walks that stop early, where the rest of a walk hardly changes the value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from calib.errors import UserError
from smpq.scoring.estimators.base import Coalitions, Floats, Game, Stable, Stopping, estimator
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.exact import affordable, enumerate_game
from smpq.scoring.estimators.permutation import walk
from smpq.scoring.estimators.result import Estimate
from smpq.scoring.estimators.sampling import FEWEST, Samples, check_affords, reason_to_stop

_AT_ONCE = 16


@dataclass(frozen=True)
class _Walks:
    """`marginals [k, n]` by player, and how many of the k walks were `truncated`."""

    marginals: Floats
    truncated: int


_Draw: TypeAlias = Callable[[CountedGame, int, np.random.Generator], _Walks]
_Cut: TypeAlias = Callable[[Floats], Coalitions]


@estimator("truncated")
@dataclass(frozen=True)
class Truncated:
    """Walks from the empty coalition up, cut when the value has come within a tolerance of the grand coalition's.

    1. `tolerance` is a fraction of |V(grand) - V(empty)|; Ghorbani and Zou 2019, algorithm 1.
    2. There the players that are not reached get 0, which is biased. Here they share what is left, so that every walk
       sums to V(grand) - V(empty), and one walk in `1 / follow` that could be cut is followed to its end all the same;
       what it finds beyond the equal shares counts `1 / follow` times. The mean over both fates is the whole walk's: no
       bias. Ours.
    3. `follow=0` never follows: cheaper, and biased by what the marginals of late players differ from each other, which
       for a monotone game is less than the tolerance.
    """

    tolerance: float = 0.05
    follow: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError("the tolerance of a truncated walk is a fraction of V(grand) - V(empty), from 0 to below 1")
        if not 0 <= self.follow <= 1:
            raise UserError("the share of truncated walks that are followed is between 0 and 1")

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the mean marginals; UserError below 2n evaluations."""
        return _estimate(self._walks, CountedGame(game, players), stopping, seed, stable, "truncated")

    def _walks(self, game: CountedGame, count: int, generator: np.random.Generator) -> _Walks:
        orders, followed = _orders(game, count, generator), generator.random(count) < self.follow
        empty, grand = game.ends()

        def cut(value: Floats) -> Coalitions:
            return np.asarray(abs(grand - value) <= self.tolerance * abs(grand - empty))

        values, reached = _lockstep(game, orders, empty, cut, ~followed)
        values[:, -1] = grand
        marginals = np.zeros((count, game.players))
        for row, (order, stop) in enumerate(zip(orders, reached, strict=True)):
            late = order[stop:]
            share = (grand - values[row, stop]) / max(len(late), 1)
            marginals[row, order[:stop]] = np.diff(values[row, : stop + 1])
            marginals[row, late] = share
            if followed[row]:
                marginals[row, late] += (np.diff(values[row, stop:]) - share) / self.follow
        return _Walks(marginals, int(((reached < game.players - 1) & ~followed).sum()))


@estimator("shapley-nas")
@dataclass(frozen=True)
class ShapleyNas:
    """Walks from the grand coalition down, cut below `gamma` times its value; players that are not reached get 0.

    As in the code of Shapley-NAS (CVPR 2022), for comparison with it: the estimates of players that leave late are
    biased towards 0, and neither efficiency nor the intervals hold for Shapley values; the intervals are those of the
    truncated mean. With `fresh_batches` no value is remembered and every walk asks for its coalitions one by one, the
    grand coalition first, so that a game may draw new data whenever it sees that one. `mean_minus_deviation` is the
    score that Shapley-NAS takes.
    """

    gamma: float = 0.5
    fresh_batches: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < 1:
            raise UserError("gamma is a fraction of the grand coalition's value, from 0 to below 1")

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the mean marginals; UserError below 2n evaluations, or when the grand coalition's value is not
        positive.
        """
        counted = CountedGame(game, players, remembers=not self.fresh_batches)
        return _estimate(self._walks, counted, stopping, seed, stable, "shapley-nas", enumerates=False)

    def _walks(self, game: CountedGame, count: int, generator: np.random.Generator) -> _Walks:
        count = 1 if self.fresh_batches else count
        orders, grand = _orders(game, count, generator), float(game(np.ones((1, game.players), bool))[0])
        if grand <= 0:
            raise UserError(
                f"the grand coalition's value is {grand:g}, and shapley-nas cuts walks at a share of it: use a game "
                "with positive values "
                "such as accuracy, or the estimator truncated"
            )

        def cut(value: Floats) -> Coalitions:
            return np.asarray(value < self.gamma * grand)

        values, reached = _lockstep(game, orders, grand, cut, np.ones(count, bool), down=True)
        marginals = np.zeros((count, game.players))
        for row, (order, stop) in enumerate(zip(orders, reached, strict=True)):
            marginals[row, order[:stop]] = -np.diff(values[row, : stop + 1])
        return _Walks(marginals, int((reached < game.players).sum()))


def mean_minus_deviation(estimate: Estimate) -> Floats:
    """Return `[n]`, the mean minus the population standard deviation of the marginals over walks: the score of
    Shapley-NAS.
    """
    return estimate.values - estimate.standard_errors * np.sqrt(estimate.samples - 1)


def _estimate(
    draw: _Draw,
    game: CountedGame,
    stopping: Stopping,
    seed: int,
    stable: Stable | None,
    name: str,
    *,
    enumerates: bool = True,
) -> Estimate:
    """Draw walks, several in step with each other, until the evaluations might not suffice for one more.

    There are never more walks than evaluations: cut walks may stay among known coalitions for ever.
    """
    generator, samples, truncated = np.random.default_rng(seed), Samples(), 0
    early = stopping.precision > 0 or stable is not None
    can_enumerate = enumerates and affordable(game.players, stopping)
    if not can_enumerate:
        check_affords(stopping, 2 * (game.players + 1 if not game.remembers else game.players), name)
    while True:
        if can_enumerate and (not early or game.players == 1 or 2 * game.evaluations >= 2**game.players):
            return enumerate_game(game, seed, name)
        longest = game.players + 1 if not game.remembers else max(game.players - 1, 1)
        ends = 2 if game.remembers and not game.evaluations else 0
        affords = (stopping.evaluations - game.evaluations - ends) // longest
        count = min(samples.until_next_check(), _AT_ONCE, affords, stopping.evaluations - len(samples))
        if count > 0:
            drawn = draw(game, count, generator)
            truncated += drawn.truncated
            for sample in drawn.marginals:
                samples.add(sample)
        if len(samples) >= FEWEST:
            reason = reason_to_stop(samples.mean(), samples.covariance(), stopping, stable) if early else None
            if reason is not None or count <= 0:
                return samples.estimate(game, seed, name, reason or "evaluations", truncated)


def _orders(game: CountedGame, count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.permuted(np.tile(np.arange(game.players), (count, 1)), axis=1)


def _lockstep(
    game: CountedGame, orders: npt.NDArray[np.int64], first: float, cut: _Cut, stops: Coalitions, *, down: bool = False
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Walk all orders `[k, n]` step by step from `first`, the value of where they start.

    Returns the values `[k, n + 1]` along the walks, and after how many players `[k]` each met `cut`, n if it never did.
    Walks in `stops` end there; the others go on.
    """
    count, players = orders.shape
    coalitions = np.stack([walk(order) for order in orders]) ^ down
    values = np.full((count, players + 1), first)
    reached = np.full(count, players)
    for step in range(players):
        met = (reached == players) & cut(values[:, step]) if step else np.zeros(count, bool)
        reached[met] = step
        going = ~(stops & (reached < players))
        if not going.any():
            break
        values[going, step + 1] = game(coalitions[going, step + 1])
    return values, reached
