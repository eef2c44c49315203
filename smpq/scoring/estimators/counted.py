"""A game that counts what it is asked, and is not asked twice for the same coalition."""

from __future__ import annotations

import numpy as np

from calib.errors import UserError
from smpq.scoring.estimators.base import Coalitions, Floats, Game

MOST_ROWS = 4096
"""How many coalitions are asked for at once, at most."""


class CountedGame:
    """Remembers every value, and passes only new coalitions on: each matrix of them at once."""

    def __init__(self, game: Game, players: int) -> None:
        """Wrap `game`; UserError without a player."""
        if players < 1:
            raise UserError("a game needs at least one player")
        self.players = players
        self.evaluations = 0
        self._game = game
        self._known: dict[bytes, float] = {}

    def __call__(self, coalitions: Coalitions) -> Floats:
        """Return the values `[k]` of `[k, players]`; UserError when the game returns something else or a value is not
        finite.
        """
        keys = _keys(coalitions)
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        order = list(new.items())
        for start in range(0, len(order), MOST_ROWS):
            part = order[start : start + MOST_ROWS]
            values = self._ask(coalitions[[row for _, row in part]])
            self._known.update((key, value) for (key, _), value in zip(part, values.tolist(), strict=True))
        return np.array([self._known[key] for key in keys])

    def unknown(self, coalitions: Coalitions) -> set[bytes]:
        """Return the keys of the rows that have not been evaluated."""
        return {key for key in _keys(coalitions) if key not in self._known}

    def _ask(self, coalitions: Coalitions) -> Floats:
        values = np.asarray(self._game(coalitions), float)
        if values.shape != (len(coalitions),):
            raise UserError(
                f"the game returned {values.shape} for {len(coalitions)} coalitions: return one value for each row"
            )
        if not np.isfinite(values).all():
            raise UserError("the game returned NaN or infinity: every coalition needs a finite value")
        self.evaluations += len(coalitions)
        return values


def _keys(coalitions: Coalitions) -> list[bytes]:
    packed = np.packbits(coalitions, axis=1)
    width, data = packed.shape[1], packed.tobytes()
    return [data[start : start + width] for start in range(0, len(data), width)]
