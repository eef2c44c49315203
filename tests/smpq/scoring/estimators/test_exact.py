import itertools

import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import Exact, Stopping
from smpq.scoring.estimators.permutation import marginals_of_walk, walk
from tests.smpq.scoring.estimators.games import additive, saturating

OF_SHAPIQ = (
    (-0.081957905, -0.088502583, -0.017242665, -0.061421423, -0.180122020, -0.197607812, -0.145319856, -0.222697574),
    (-0.105825693, -0.195496498, -0.032725598, -0.208416210, -0.063304003, -0.093500902, -0.183483601, -0.103467590),
    (-0.133619406, -0.105651281, -0.217598058, 0.015232564, -0.188704016, -0.213486013, -0.089769599, -0.053057056),
)
"""`ExactComputer(game, n_players=8)("SV")` of shapiq 1.4.1, whose installation brings numba, pandas and matplotlib; a
game a row.
"""


def test_enumeration_is_the_mean_over_all_orders():
    game = saturating(5)
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    expected = np.mean([marginals_of_walk(order, game(walk(order))) for order in orders], axis=0)
    estimate = Exact().estimate(game, 5, Stopping(32), seed=0)
    assert estimate.values == pytest.approx(expected, abs=1e-12)
    assert estimate.stop_reason == "exact"
    assert estimate.evaluations == 32
    assert estimate.interval() == (pytest.approx(expected, abs=1e-12), pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_shapiq(seed):
    values = Exact().estimate(saturating(8, seed), 8, Stopping(256), seed=0).values
    assert values == pytest.approx(OF_SHAPIQ[seed], abs=1e-8)


def test_too_many_players_or_too_few_evaluations_are_refused():
    with pytest.raises(UserError, match="adaptive"):
        Exact().estimate(additive(2), 21, Stopping(2**21), seed=0)
    with pytest.raises(UserError, match="16 coalitions"):
        Exact().estimate(additive(4), 4, Stopping(15), seed=0)
