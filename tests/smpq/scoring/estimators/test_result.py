import json

import numpy as np
import pytest
from scipy import stats

from calib.errors import UserError
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


@pytest.mark.parametrize(
    "estimate", [sampled(), Exact().estimate(saturating(3), 3, Stopping(8), seed=0)], ids=["sampled", "exact"]
)
def test_what_is_written_is_read_again(estimate):
    record = json.loads(json.dumps(estimate.to_json(), allow_nan=False))
    again = Estimate.from_json(record)
    assert again.to_json() == estimate.to_json()
    for ours, theirs in zip(again.interval(), estimate.interval(), strict=True):
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 7},
        {"values": [1.0]},
        {"covariance": [[1.0]]},
        {"values": "high"},
        {"stop_reason": "tired"},
        {"samples": None},
    ],
)
def test_damaged_records_are_refused(change):
    with pytest.raises(UserError, match="estimate again"):
        Estimate.from_json(sampled().to_json() | change)
    record = sampled().to_json()
    del record[next(iter(change))]
    with pytest.raises(UserError, match="incomplete"):
        Estimate.from_json(record)


def test_unknown_covariances_stay_unknown():
    estimate = sampled()
    record = estimate.to_json() | {"covariance": None}
    assert Estimate.from_json(record).covariance is None
    assert np.array_equal(Estimate.from_json(record).standard_errors, estimate.standard_errors)
