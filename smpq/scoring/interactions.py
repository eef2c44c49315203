"""Shapley values of players with one move each, and Shapley interactions of every two, by sampled orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Game = Callable[[int, Sequence[frozenset[int]]], list[float]]
"""Values of coalitions of players; the number of the order says which part of the samples may be used."""


@dataclass(frozen=True)
class Interactions:
    """`marginals[order, player]`, whose means are the Shapley values; `pairs[i, j]`, the mean of the samples of the
    interaction, symmetric with 0 on the diagonal; `main[order, player]`: what is left of a marginal without the
    interactions with those that went before; `evaluations` coalitions were asked for.

    The game with the means of `main` as values of players and `pairs` as those of pairs has these Shapley values, and
    these interactions: phi_i = a_i + sum_j I_ij / 2, since each player goes before i in half of the orders (Grabisch
    and Roubens 1999). Taking away those of the order itself leaves less noise than taking away their half.
    """

    marginals: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.float64]
    main: npt.NDArray[np.float64]
    evaluations: int


def sample(
    game: Game,
    players: int,
    rounds: int,
    generator: np.random.Generator,
    advance: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> Interactions:
    """Estimate Shapley values (Castro et al. 2009) and Shapley interactions (Grabisch and Roubens 1999) in orders.

    Two players that follow each other in a random order after the coalition S give a sample of their interaction,
    v(S+i+j) - v(S+i) - v(S+j) + v(S); all but v(S+j) is on the walk anyway. In the orders of a round every two players
    follow each other at least once: they are the paths into which the complete graph falls apart (Walecki 1892), with
    the players dealt out at random and every path walked in a random direction, so that each sample is unbiased. The
    orders are ours. When `enough` says so, it ends after the order that it is in; pairs that were not met are 0.
    """
    marginals: list[npt.NDArray[np.float64]] = []
    before: list[npt.NDArray[np.bool_]] = []
    evaluations = 0
    totals, counts = np.zeros((players, players)), np.zeros((players, players))
    for _ in range(rounds):
        dealt = generator.permutation(players)
        for path in zigzags(players):
            if marginals and enough():
                break
            order = [int(dealt[place]) for place in (path if generator.integers(2) else path[::-1])]
            walk = [frozenset(order[:size]) for size in range(players + 1)]
            skipped = [walk[place] | {order[place + 1]} for place in range(players - 1)]
            values = game(len(marginals), [*walk, *skipped])
            evaluations += len(values)
            places = np.argsort(order)
            marginals.append(np.diff(values[: players + 1])[places])
            before.append(places[:, None] > places)
            for place, other in enumerate(values[players + 1 :]):
                i, j = order[place], order[place + 1]
                totals[i, j] += values[place + 2] - values[place + 1] - other + values[place]
                counts[i, j] += 1
            advance()
    pairs = (totals + totals.T) / np.maximum(counts + counts.T, 1)
    main = [steps - (gone * pairs).sum(axis=1) for steps, gone in zip(marginals, before, strict=True)]
    return Interactions(np.array(marginals), pairs, np.array(main), evaluations)


def orders_of_a_round(players: int) -> int:
    """Return how many orders let every two players follow each other."""
    return (players + 1) // 2


def zigzags(players: int) -> Iterator[list[int]]:
    """Yield paths through all players in which every two follow each other: exactly once for an even number of them.

    With an odd number one that is not there is added, and left out of each path again.
    """
    even = players + players % 2
    for start in range(even // 2):
        path = [(start + (step // 2 + 1 if step % 2 else -(step // 2))) % even for step in range(even)]
        yield [player for player in path if player < players]
