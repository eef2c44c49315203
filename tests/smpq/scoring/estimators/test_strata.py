import math

import numpy as np
import pytest

from smpq.scoring.estimators.exact import values_of_table
from smpq.scoring.estimators.strata import Stratum, sizes_to_draw
from tests.smpq.scoring.estimators.games import saturating


@pytest.mark.parametrize("players", [2, 5, 6, 9])
def test_all_pairs_with_their_weights_give_the_shapley_values(players):
    game = saturating(players) if players > 2 else None
    table = game.table if game is not None else np.array([0.0, 1.0, 3.0, 9.0])
    half = (table - table[::-1]) / 2
    values = np.full(players, 2 / players * half[-1])
    for size in range(1, players // 2 + 1):
        stratum = Stratum(players, size)
        stratum.extend(stratum.population, np.random.default_rng(0))
        assert stratum.is_complete
        assert len(np.unique(stratum.coalitions(), axis=0)) == stratum.population
        rows = stratum.coalitions() @ (1 << np.arange(players)[::-1])
        values += half[rows] @ stratum.shapley_weights()
    assert values == pytest.approx(values_of_table(table, players), abs=1e-12)


@pytest.mark.parametrize(("players", "size"), [(8, 4), (30, 15), (40, 7)])
def test_pairs_are_drawn_once_and_stay_when_more_are_drawn(players, size):
    stratum, generator = Stratum(players, size), np.random.default_rng(1)
    stratum.extend(12, generator)
    first = stratum.coalitions()
    stratum.extend(25, generator)
    rows = stratum.coalitions()
    assert np.array_equal(rows[:12], first)
    assert len(np.unique(rows, axis=0)) == 25
    assert (rows.sum(axis=1) == size).all()
    if stratum.halves:
        assert rows[:, 0].all()


def test_every_player_is_drawn_equally_often():
    counts = np.zeros(24)
    for seed in range(60):
        stratum = Stratum(24, 6)
        stratum.extend(40, np.random.default_rng(seed))
        counts += stratum.coalitions().sum(axis=0)
    assert abs(counts - 600).max() < 4 * math.sqrt(600)


@pytest.mark.parametrize("players", [4, 7, 10, 18, 60])
def test_sizes_grow_with_the_pairs_and_never_exceed_them(players):
    strata = [Stratum(players, size) for size in range(1, players // 2 + 1)]
    least = sum(sizes_to_draw(strata, 0))
    before = [0] * len(strata)
    for pairs in range(least, min(2 ** (players - 1) - 1, 1500), 7):
        wanted = sizes_to_draw(strata, pairs)
        assert sum(wanted) <= pairs
        assert all(count >= 2 or count == stratum.population for count, stratum in zip(wanted, strata, strict=True))
        assert all(now >= then for now, then in zip(wanted, before, strict=True))
        before = wanted
    assert before[0] == players
