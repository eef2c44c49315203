"""What holds for every estimator of Shapley values."""

import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import ESTIMATORS, Stopping, estimator_from_name
from tests.smpq.scoring.estimators.games import additive, saturating

SAMPLERS = [name for name in ESTIMATORS if name != "exact"]
PLAYERS = 8
BUDGET = 120
FEWEST = {"permutation": 20, "antithetic": 38, "adaptive": 38}
"""Of 10 players."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_values_sum_to_what_the_grand_coalition_adds(name):
    game = saturating(PLAYERS)
    estimate = estimator_from_name(name).estimate(game, PLAYERS, Stopping(BUDGET), seed=0)
    assert estimate.values.sum() == pytest.approx(game.table[-1] - game.table[0], abs=1e-12)
    assert np.ones(PLAYERS) @ estimate.covariance @ np.ones(PLAYERS) == pytest.approx(0, abs=1e-9)
    assert estimate.stop_reason == "evaluations"
    assert estimate.evaluations <= BUDGET
    assert estimate.estimator == name


@pytest.mark.parametrize("name", SAMPLERS)
def test_null_players_and_twins(name):
    game = saturating(PLAYERS, null=3, twins=(1, 6))
    estimate = estimator_from_name(name).estimate(game, PLAYERS, Stopping(BUDGET), seed=1)
    low, high = estimate.interval(0.999)
    assert low[3] - 1e-12 <= 0 <= high[3] + 1e-12
    assert abs(estimate.values[3]) < 0.05 * estimate.values.std()
    difference = np.zeros(PLAYERS)
    difference[[1, 6]] = 1, -1
    error = np.sqrt(difference @ estimate.covariance @ difference)
    assert 0 < abs(difference @ estimate.values) < 5 * error


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_seeds_give_equal_estimates(name):
    first, again, other = (
        estimator_from_name(name).estimate(saturating(PLAYERS), PLAYERS, Stopping(BUDGET), seed).to_json()
        for seed in (4, 4, 5)
    )
    assert first == again
    assert first["values"] != other["values"]


@pytest.mark.parametrize("name", [*SAMPLERS, "exact"])
@pytest.mark.parametrize(("players", "precision"), [(1, 0.0), (2, 0.0), (3, 0.0), (6, 1e-9)])
def test_few_players_are_exact(name, players, precision):
    game = saturating(players) if players > 3 else additive(players)
    estimate = estimator_from_name(name).estimate(game, players, Stopping(2**players, precision), seed=0)
    assert estimate.values == pytest.approx(game.exact, abs=1e-12)
    assert (estimate.stop_reason, estimate.evaluations) == ("exact", 2**players)


@pytest.mark.parametrize("name", [*SAMPLERS, "exact"])
def test_a_single_player_takes_all_at_any_precision(name):
    assert estimator_from_name(name).estimate(additive(1), 1, Stopping(2, 0.1), seed=0).values.tolist() == [1.0]


def test_the_fewest_evaluations_give_intervals_and_one_less_is_refused_before_any():
    for name, fewest in FEWEST.items():
        estimate = estimator_from_name(name).estimate(saturating(10), 10, Stopping(fewest), seed=0)
        assert estimate.evaluations <= fewest
        assert (estimate.samples >= 2).all()
        assert np.isfinite(estimate.standard_errors).all()
        assert estimate.standard_errors.max() > 0
        game = saturating(10)
        with pytest.raises(UserError, match=f"{name} needs at least {fewest} evaluations"):
            estimator_from_name(name).estimate(game, 10, Stopping(fewest - 1), seed=0)
        assert game.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_intervals_cover_as_often_as_they_say(name):
    games = [saturating(9, seed) for seed in range(4)]
    covered = []
    for seed in range(60):
        game = games[seed % 4]
        low, high = estimator_from_name(name).estimate(game, 9, Stopping(300), seed).interval(0.95)
        covered.append((low <= game.exact) & (game.exact <= high))
    assert 0.90 <= np.mean(covered) <= 0.99
