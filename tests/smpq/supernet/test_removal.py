from itertools import permutations

import numpy as np
import pytest

from calib.errors import UserError
from smpq.supernet.removal import RemovalWalks

ROWS = ((0, 1, 2), (3, 4))


def games(coalitions):
    """Two games: one with interactions between rows, and one that counts members."""
    worth = np.array([0.02, 0.05, 0.2, 0.03, 0.15])
    one = 0.5 + coalitions @ worth + 0.1 * coalitions[:, 2] * coalitions[:, 4]
    return np.stack([one, coalitions.sum(1).astype(float)], axis=1)


def by_hand(order):
    """The walk of one order, one removal after the other."""
    present, found = np.ones(5, bool), np.zeros(5)
    for player in order:
        row = next(row for row in ROWS if player in row)
        if sum(present[list(row)]) > 1:
            before = games(present[None])[0, 0]
            present[player] = False
            found[player] = before - games(present[None])[0, 0]
    return found


def test_values_are_those_of_all_orders():
    exact = np.mean([by_hand(order) for order in permutations(range(5))], axis=0)
    found = RemovalWalks(ROWS, walks=400, gamma=0.0).estimate(games, (0, 1))[0].estimate
    assert np.all(np.abs(found.values - exact) <= 3.5 * found.standard_errors)
    assert np.all(found.standard_errors < 0.01)


def test_marginals_telescope_and_the_last_of_a_row_stays():
    walks = RemovalWalks(ROWS, walks=6, gamma=0.0)
    value, count = walks.estimate(games, (2, 0))
    assert np.all((count.marginals == 1).sum(1) == 3)  # all but one of each row leave
    full = games(np.ones((1, 5), bool))[0, 0]
    for marginals, left in zip(value.marginals, count.marginals == 0, strict=True):
        assert marginals.sum() == pytest.approx(full - games(left[None])[0, 0])
    assert value.estimate.truncated == 0
    assert value.estimate.evaluations == 1 + 6 * 3


def test_walks_below_gamma_are_cut_and_counted():
    def collapsing(coalitions):
        return np.where(coalitions.all(1), 1.0, 0.1)[:, None]

    found = RemovalWalks(ROWS, walks=5).estimate(collapsing, (0, 0))[0]
    assert found.estimate.truncated == 5
    assert np.all((found.marginals != 0).sum(1) == 1)


def test_twins_get_equal_shares():
    def twins(coalitions):
        return (0.5 + 0.4 * (coalitions[:, 0] | coalitions[:, 1]) + 0.05 * coalitions[:, 3])[:, None]

    found = RemovalWalks(ROWS, walks=300, gamma=0.0).estimate(twins, (5, 0))[0].estimate
    apart = abs(found.values[0] - found.values[1])
    assert apart <= 3 * np.hypot(*found.standard_errors[:2])
    assert found.values[2] == 0


def test_the_same_seed_gives_the_same_walks():
    walks = RemovalWalks(ROWS, walks=4)
    one, same, other = (walks.estimate(games, seed)[0].marginals for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_wrong_games():
    with pytest.raises(UserError, match="cut at a share"):
        RemovalWalks(ROWS).estimate(lambda rows: -np.ones((len(rows), 1)), (0, 0))
    with pytest.raises(UserError, match="a column for each game"):
        RemovalWalks(ROWS).estimate(lambda rows: np.ones(len(rows)), (0, 0))
    with pytest.raises(UserError, match="NaN"):
        RemovalWalks(ROWS).estimate(lambda rows: np.full((len(rows), 1), np.nan), (0, 0))
