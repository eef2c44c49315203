import itertools

import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import Exact, Stopping
from smpq.scoring.estimators.permutation import marginals_of_walk, walk
from tests.smpq.scoring.estimators.games import additive, saturating


def test_enumeration_is_the_mean_over_all_orders():
    game = saturating(5)
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    expected = np.mean([marginals_of_walk(order, game(walk(order))) for order in orders], axis=0)
    estimate = Exact().estimate(game, 5, Stopping(32), seed=0)
    assert estimate.values == pytest.approx(expected, abs=1e-12)
    assert estimate.stop_reason == "exact"
    assert estimate.evaluations == 32
    assert estimate.interval() == (pytest.approx(expected, abs=1e-12), pytest.approx(expected, abs=1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_shapiq(seed):
    shapiq = pytest.importorskip("shapiq", reason="shapiq is not installed")
    game = saturating(8, seed)
    theirs = shapiq.ExactComputer(game, n_players=8)("SV")
    values = Exact().estimate(game, 8, Stopping(256), seed=0).values
    assert values == pytest.approx([theirs[(player,)] for player in range(8)], abs=1e-6)


def test_too_many_players_or_too_few_evaluations_are_refused():
    with pytest.raises(UserError, match="adaptive"):
        Exact().estimate(additive(2), 21, Stopping(2**21), seed=0)
    with pytest.raises(UserError, match="16 coalitions"):
        Exact().estimate(additive(4), 4, Stopping(15), seed=0)
