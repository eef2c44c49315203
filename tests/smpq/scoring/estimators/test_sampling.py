import numpy as np
import pytest

from smpq.scoring.estimators import Permutation, Stopping
from smpq.scoring.estimators.sampling import Samples, reason_to_stop
from tests.smpq.scoring.estimators.games import saturating


def test_the_covariance_is_that_of_the_mean():
    generator, samples = np.random.default_rng(0), Samples()
    rows = generator.normal(size=(40, 3))
    for row in rows:
        samples.add(row)
    assert samples.mean() == pytest.approx(rows.mean(axis=0))
    assert np.sqrt(samples.covariance().diagonal()) == pytest.approx(rows.std(axis=0, ddof=1) / np.sqrt(40))


def test_precision_is_measured_against_the_spread_of_the_values():
    values, covariance = np.array([1.0, 3.0]), np.diag([0.04, 0.01])
    assert reason_to_stop(values, covariance, Stopping(9, 0.19), None) is None
    assert reason_to_stop(values, covariance, Stopping(9, 0.21), None) == "precision"
    assert reason_to_stop(values, covariance, Stopping(9), None) is None


@pytest.mark.parametrize("precision", [0.3, 0.1])
def test_sampling_stops_when_it_is_precise_enough(precision):
    estimate = Permutation().estimate(saturating(14), 14, Stopping(16000, precision), seed=0)
    assert estimate.stop_reason == "precision"
    assert estimate.evaluations < 10000
    assert estimate.standard_errors.max() <= precision * estimate.values.std()


def test_sampling_stops_when_the_decision_is_stable():
    seen = []

    def stable(values, covariance):
        seen.append((values.shape, covariance.shape))
        return len(seen) == 3

    estimate = Permutation().estimate(saturating(12), 12, Stopping(4000), seed=0, stable=stable)
    assert estimate.stop_reason == "stable"
    assert seen == [((12,), (12, 12))] * 3


def test_a_rule_that_never_holds_leaves_the_number_of_evaluations():
    game = saturating(12)
    estimate = Permutation().estimate(game, 12, Stopping(500), seed=0, stable=lambda *_: False)
    assert estimate.stop_reason == "evaluations"
    asked = {row.tobytes() for rows in game.asked for row in rows}
    assert sum(map(len, game.asked)) == len(asked) == estimate.evaluations
    assert 500 - 11 < estimate.evaluations <= 500
