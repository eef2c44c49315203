"""Shapley values and interactions of games whose answer is known."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from smpq.scoring.interactions import orders_of_a_round, sample, zigzags


def game_of(players: int, seed: int):
    generator = np.random.default_rng(seed)
    values, pairs = generator.normal(size=players), np.triu(generator.normal(size=(players, players)), 1)

    def game(_, coalitions):
        found = []
        for coalition in coalitions:
            inside = np.isin(np.arange(players), list(coalition)).astype(float)
            found.append(float(values @ inside + inside @ pairs @ inside))
        return found

    return game, values, pairs + pairs.T


@pytest.mark.parametrize("players", range(2, 12))
def test_in_one_round_every_two_follow_each_other(players):
    paths = list(zigzags(players))
    assert len(paths) == orders_of_a_round(players)
    assert all(sorted(path) == list(range(players)) for path in paths)
    met = Counter(frozenset(two) for path in paths for two in itertools.pairwise(path))
    assert met.keys() == {frozenset(two) for two in itertools.combinations(range(players), 2)}
    if players % 2 == 0:
        assert set(met.values()) == {1}


@pytest.mark.parametrize("players", [2, 5, 6])
def test_values_and_pairs_of_a_game_that_has_no_more_are_exact(players):
    game, values, pairs = game_of(players, players)
    found = sample(game, players, 1, np.random.default_rng(0))
    assert found.pairs == pytest.approx(pairs)
    assert found.main == pytest.approx(np.tile(values, (len(found.main), 1)))
    ends = found.marginals.sum(axis=1)
    assert ends == pytest.approx(np.full(len(ends), values.sum() + pairs.sum() / 2)), "marginals add up"
    assert found.evaluations == len(found.main) * 2 * players


def test_interactions_of_any_game_are_right_on_average():
    """Against the definition of the Shapley interaction index on all coalitions."""
    players, generator = 4, np.random.default_rng(7)
    table = {
        frozenset(each): generator.normal() for size in range(5) for each in itertools.combinations(range(4), size)
    }
    expected = np.zeros((players, players))
    for i, j in itertools.combinations(range(players), 2):
        rest = [k for k in range(players) if k not in (i, j)]
        differences = []
        for size in range(3):
            inside = [frozenset(each) for each in itertools.combinations(rest, size)]
            differences.append(
                np.mean([table[s | {i, j}] - table[s | {i}] - table[s | {j}] + table[s] for s in inside])
            )
        expected[i, j] = expected[j, i] = np.mean(differences)
    rounds = 400
    found = sample(lambda _, each: [table[s] for s in each], players, rounds, np.random.default_rng(1))
    spread = max(table.values()) - min(table.values())
    assert np.abs(found.pairs - expected).max() < 4 * 2 * spread / np.sqrt(rounds)
