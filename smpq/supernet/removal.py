"""Shapley values of alternatives by removal: walks from the grand coalition down, in which the last one of each row
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt

from calib.declared import Declared, check_declared
from calib.errors import UserError
from smpq.scoring.estimators.base import Coalitions, Floats
from smpq.scoring.estimators.result import Estimate
from smpq.supernet.settings import GAMMA, WALKS

Games: TypeAlias = Callable[[Coalitions], Floats]
"""Called with `[k, players]`; returns `[k, c]`, the values of the coalitions in c games. The first one decides where
walks are cut.
"""
_LOOK_AHEAD = 6
"""Coalitions of a walk that are asked for at once: they share most of their computation, and few are in vain when it is
cut.
"""


@dataclass(frozen=True)
class Removals:
    """What one game's walks found: the `marginals` of each walk `[walks, players]`, 0 for whoever was not reached.

    `evaluations` counts coalitions, `truncated` walks that were cut. `parts` `[parts, players]` are the means over
    walks on parts of the samples, where these are known.
    """

    marginals: Floats
    evaluations: int
    truncated: int
    seed: int
    parts: Floats | None = None

    @cached_property
    def estimate(self) -> Estimate:
        """The means over walks, with their intervals."""
        marginals, (count, players) = self.marginals, self.marginals.shape
        covariance = np.atleast_2d(np.cov(marginals, rowvar=False)) / count
        return Estimate(
            marginals.mean(0), np.sqrt(covariance.diagonal()), np.full(players, count - 1.0), covariance,
            np.full(players, count), self.evaluations, self.truncated, self.seed, "shapley-nas", "evaluations",
        )  # fmt: skip


@dataclass(frozen=True)
class RemovalWalks:
    """Monte-Carlo walks of Shapley-NAS (CVPR 2022, section 3.3) for players in rows of alternatives.

    1. A walk removes one player after the other from the grand coalition, in random order.
    2. The last player of a row stays, wherever it stands in the order; its marginal contribution is 0. The paper's code
       for ImageNet does so.
    3. A walk ends below `gamma` times the grand coalition's value. Players that are not reached get 0. `gamma=0` walks
       to the end.
    4. Rules 2 and 3 bias the estimates of players that leave late towards 0. The intervals are those of this truncated
       mean.
    """

    rows: tuple[tuple[int, ...], ...]
    walks: Annotated[int, Declared("walks for each estimate", WALKS)] = 10
    gamma: Annotated[float, Declared("walks end below this share of the first value; 0: never", GAMMA)] = 0.5

    def __post_init__(self) -> None:
        check_declared(self)

    def estimate(self, games: Games, seed: Sequence[int]) -> list[Removals]:
        """Return the marginals of all players of the rows and their means, for each game; all of them see the same
        walks.

        UserError when walks are cut and the grand coalition is worth nothing in the first game.
        """
        players = sum(map(len, self.rows))
        grand = _asked(games, np.ones((1, players), bool))[0]
        if self.gamma and grand[0] <= 0:
            raise UserError(
                f"the grand coalition's value is {grand[0]:g}, and walks are cut at a share of it: use gamma 0, or "
                "train for longer"
            )
        generator = np.random.default_rng(seed)
        orders = [self.leaving(generator.permutation(players)) for _ in range(self.walks)]
        marginals, evaluations, truncated = self._walk(games, orders, grand)
        return [Removals(column, evaluations + 1, truncated, seed[0]) for column in np.moveaxis(marginals, 2, 0)]

    def leaving(self, order: npt.NDArray[np.int64]) -> list[int]:
        """Return who leaves, in this order: all but the last of each row."""
        row_of = {player: index for index, row in enumerate(self.rows) for player in row}
        left = [len(row) for row in self.rows]
        found = []
        for player in order.tolist():
            left[row_of[player]] -= 1
            if left[row_of[player]]:
                found.append(player)
        return found

    def _walk(self, games: Games, orders: Sequence[Sequence[int]], grand: Floats) -> tuple[Floats, int, int]:
        """Walk all orders side by side, a few steps at a time.

        Returns the marginals `[walks, players, games]`, how many coalitions were evaluated, and how many walks were
        cut.
        """
        present = np.ones((len(orders), sum(map(len, self.rows))), bool)
        marginals = np.zeros((*present.shape, len(grand)))
        value = np.tile(grand, (len(orders), 1))
        going, step, evaluations, truncated = list(range(len(orders))), 0, 0, 0
        while going:
            asked: list[npt.NDArray[np.bool_]] = []
            for walk in going:
                for player in orders[walk][step : step + _LOOK_AHEAD]:
                    present[walk, player] = False
                    asked.append(present[walk].copy())
            answers = iter(_asked(games, np.array(asked)))
            evaluations += len(asked)
            still = []
            for walk in going:
                cut_at = None
                for place, player in enumerate(orders[walk][step : step + _LOOK_AHEAD], step + 1):
                    found = next(answers)
                    if cut_at is None:
                        marginals[walk, player] = value[walk] - found
                        value[walk] = found
                        cut_at = place if self.gamma and found[0] < self.gamma * grand[0] else None
                truncated += cut_at is not None and cut_at < len(orders[walk])
                if cut_at is None and step + _LOOK_AHEAD < len(orders[walk]):
                    still.append(walk)
            going, step = still, step + _LOOK_AHEAD
        return marginals, evaluations, truncated


def _asked(games: Games, coalitions: Coalitions) -> Floats:
    """UserError when a value is not a number, or there is not a row for each coalition."""
    values = np.asarray(games(coalitions), float)
    if values.ndim != 2 or len(values) != len(coalitions):
        raise UserError(
            f"the games returned {values.shape} for {len(coalitions)} coalitions: return a row for each, a column for "
            "each game"
        )
    if not np.isfinite(values).all():
        raise UserError("a game returned NaN or infinity: every coalition needs a finite value")
    return values
