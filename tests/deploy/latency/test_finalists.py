"""Which of the policies that meet a limit is handed over."""

from __future__ import annotations

import numpy as np
import pytest

from calib.formats.format import FP32
from deploy.latency.finalists import Finalist, judged, lasting_first
from deploy.latency.observed import LASTING, Observation
from smpq.problem.policy import Policy

NAMES = ("a", "b", "c")
POLICIES = {name: Policy({name: FP32}) for name in NAMES}


class Values:
    """Values that are known."""

    def __init__(self, **values):
        self._values = {POLICIES[name].key(): value for name, value in values.items()}

    def __call__(self, policy):
        return self._values[policy.key()]

    def many(self, policies):
        return [self(policy) for policy in policies]


def names(finalists):
    return "".join(name for each in finalists for name, policy in POLICIES.items() if policy == each.policy)


def test_other_samples_decide_where_there_are_any():
    values, unseen = Values(a=-1.0, b=-2.0, c=-3.0), Values(a=-3.0, b=-1.0, c=-2.0)
    assert names(judged(list(POLICIES.values()), values, None)) == "abc"
    assert names(judged(list(POLICIES.values()), values, unseen)) == "bca"


@pytest.mark.parametrize(
    ("losses", "lasting", "order"),
    [
        ((1.0, 1.05, 1.2), "bc", "bac"),
        ((1.0, 1.05, 1.2), "c", "abc"),
        ((1.0, 1.05, 1.2), "abc", "abc"),
        ((1.0, 1.05, 1.2), "", "abc"),
        ((0.0, 0.0, 1.0), "b", "bac"),
        ((-0.5, 0.0, 1.0), "b", "abc"),
    ],
)
def test_what_lasts_comes_first_unless_the_best_loses_clearly_less(losses, lasting, order):
    finalists = [Finalist(POLICIES[name], -1.0, unseen=-loss) for name, loss in zip(NAMES, losses, strict=True)]
    assert names(lasting_first(finalists, {POLICIES[name].key() for name in lasting})) == order


def test_four_of_five_measurements_of_what_lasts_are_within_the_limit_with_their_intervals():
    generator = np.random.default_rng(0)
    limit, error = 0.65, 0.005
    truths = generator.uniform(0.6, 0.65, 100_000)
    first, second = (truths + error * generator.standard_normal(len(truths)) for _ in range(2))
    near = abs(first - (limit - LASTING * error)) < 0.1 * error
    assert Observation(POLICIES["a"], limit - LASTING * error - 1e-9, error).lasts(limit)
    assert not Observation(POLICIES["a"], limit - LASTING * error + 1e-9, error).lasts(limit)
    assert (second[near] + 1.96 * error <= limit).mean() == pytest.approx(0.8, abs=0.03)
