import numpy as np
import pytest

from smpq.scoring.estimators import Antithetic, Permutation, Stopping
from smpq.scoring.estimators.permutation import marginals_of_walk, walk
from tests.smpq.scoring.estimators.games import TableGame, saturating


def test_a_walk_adds_the_players_in_order():
    order = np.array([2, 0, 1])
    assert walk(order).astype(int).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]]
    assert marginals_of_walk(order, np.array([0.0, 1.0, 3.0, 7.0])).tolist() == [2.0, 4.0, 1.0]


def test_walks_are_asked_for_together():
    game = saturating(10)
    Permutation().estimate(game, 10, Stopping(200), seed=0)
    assert len(game.asked) < 20
    assert max(len(asked) for asked in game.asked) > 20


def test_a_walk_and_its_reverse_cancel_pairs_of_players():
    # only pairs interact: the reverse walk has whatever the walk lacks, so one sample is exact
    generator = np.random.default_rng(0)
    rows = (np.arange(2**7)[:, None] >> np.arange(7)[::-1] & 1).astype(float)
    game = TableGame(((rows @ generator.normal(size=(7, 7))) * rows).sum(axis=1))
    paired = Antithetic().estimate(game, 7, Stopping(60), seed=1)
    plain = Permutation().estimate(game, 7, Stopping(60), seed=1)
    assert paired.values == pytest.approx(game.exact, abs=1e-12)
    assert paired.standard_errors.max() < 1e-12
    assert plain.standard_errors.max() > 0.1
