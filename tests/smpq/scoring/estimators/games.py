"""Small games with known Shapley values."""

import numpy as np

from smpq.scoring.estimators.exact import all_coalitions, values_of_table


class TableGame:
    """A game given by all its values; keeps what it was asked."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.players = len(table).bit_length() - 1
        self.asked: list[np.ndarray] = []

    def __call__(self, coalitions: np.ndarray) -> np.ndarray:
        self.asked.append(coalitions.copy())
        return self.table[coalitions @ (1 << np.arange(self.players)[::-1])]

    @property
    def exact(self) -> np.ndarray:
        return values_of_table(self.table, self.players)


def additive(players: int) -> TableGame:
    return TableGame(3.0 + all_coalitions(players) @ np.arange(1.0, players + 1))


def saturating(players: int, seed: int = 0, null: int | None = None, twins: tuple[int, int] | None = None) -> TableGame:
    """-tanh of single, pair and triple terms: interactions of every order."""
    generator = np.random.default_rng(seed)
    table = all_coalitions(players).astype(float)
    if twins is not None:
        table[:, list(twins)] = table[:, list(twins)].mean(axis=1, keepdims=True)
    if null is not None:
        table[:, null] = 0
    alone = generator.uniform(0.1, 1.0, players)
    if twins is not None:
        alone[twins[1]] = alone[twins[0]]
    cost = table @ alone
    pairs = generator.normal(0, 0.3, (players, players))
    cost = cost + ((table @ pairs) * table).sum(axis=1) / 2
    member = generator.choice([i for i in range(players) if i != null and i not in (twins or ())], 3, replace=False)
    return TableGame(-np.tanh((cost + table[:, member].prod(axis=1)) / 2))
