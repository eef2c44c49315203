import json

import pytest
from scipy import stats

from smpq.scoring.estimators import Estimate, Exact, Permutation, Stopping
from tests.smpq.scoring.estimators.games import saturating


def sampled() -> Estimate:
    return Permutation().estimate(saturating(6), 6, Stopping(30), seed=3)


def test_intervals_are_students():
    estimate = sampled()
    low, high = estimate.interval(0.9)
    half = stats.t(estimate.samples[0] - 1).ppf(0.95) * estimate.standard_errors
    assert (high - estimate.values) == pytest.approx(half)
    assert (estimate.values - low) == pytest.approx(half)
    assert (half > 1.645 * estimate.standard_errors).all()


def test_what_is_not_finite_is_written_as_nothing():
    exact = Exact().estimate(saturating(3), 3, Stopping(8), seed=0).to_json()
    assert exact["degrees_of_freedom"] == [None] * 3
    assert json.loads(json.dumps(exact, allow_nan=False)) == exact
