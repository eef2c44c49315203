import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import Adaptive, Permutation, Stopping
from tests.smpq.scoring.estimators.games import additive, saturating


def test_an_additive_game_is_recovered():
    estimate = Adaptive().estimate(additive(10), 10, Stopping(60), seed=0)
    assert estimate.values == pytest.approx(np.arange(1.0, 11.0), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [200, 600])
def test_errors_are_far_below_those_of_permutations(evaluations):
    game = saturating(12)

    def error(method):
        found = [method.estimate(game, 12, Stopping(evaluations), seed) for seed in range(8)]
        assert all(estimate.evaluations <= evaluations for estimate in found)
        return np.mean([(estimate.values - game.exact) ** 2 for estimate in found])

    assert error(Adaptive()) < 0.1 * error(Permutation())


def test_the_game_is_asked_once_when_nothing_stops_early():
    game = saturating(12)
    estimate = Adaptive().estimate(game, 12, Stopping(300), seed=0)
    assert len(game.asked) == 1
    assert estimate.samples.tolist() == [len(game.asked[0]) // 2] * 12


def test_precision_takes_rounds():
    game = saturating(12)
    estimate = Adaptive().estimate(game, 12, Stopping(2000, 0.02), seed=0)
    assert estimate.stop_reason == "precision"
    assert estimate.evaluations < 1000
    assert estimate.standard_errors.max() <= 0.02 * estimate.values.std()
    stable = Adaptive().estimate(
        game, 12, Stopping(2000), seed=0, stable=lambda values, covariance: values.shape == (12,)
    )
    assert stable.stop_reason == "stable"
    assert stable.evaluations < estimate.evaluations


def test_a_surrogate_of_fewer_pairs_is_corrected_by_the_others():
    game = saturating(12)
    small = Adaptive(most_pairs=60).estimate(game, 12, Stopping(600), seed=0)
    low, high = small.interval(0.999)
    assert ((low <= game.exact) & (game.exact <= high)).all()
    with pytest.raises(UserError):
        Adaptive(most_pairs=3)
