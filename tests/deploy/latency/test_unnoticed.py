"""A search goes on for what is noticed."""

from __future__ import annotations

import pytest

from deploy.latency.observed import Observation
from deploy.latency.steps import SUFFICES
from tests.deploy.latency.test_loop import NOISE, Bench, searched
from tests.deploy.synthetic import policies


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_within_the_limit_whose_loss_nobody_notices_ends_the_search(seed):
    bench, whole = searched(seed, 0.75)
    lasting = [step for step in whole.steps if step.observation.lasts(0.75)]
    losses = [-bench.value(step.proposal.policy) for step in lasting]
    unnoticed = 1.01 * losses[0]
    hurried = Bench(seed)
    outcome = hurried.run(0.75, unnoticed=unnoticed)
    assert outcome.stop_reason == SUFFICES
    assert hurried.measured == bench.measured[: len(hurried.measured)], "up to there it is the same search"
    assert hurried.measured[-1] == lasting[0].proposal.policy.key(), "the first that leaves nothing to gain is the last"
    assert outcome.met
    assert -outcome.value < unnoticed


def test_what_gains_nothing_that_is_noticed_is_not_measured():
    benches, coarse = [searched(seed, 0.75)[0] for seed in range(5)], [Bench(seed) for seed in range(5)]
    for bench in coarse:
        outcome = bench.run(0.75, unnoticed=0.2)
        assert outcome.met
        left = [each for each in policies(bench.space) if each.key() not in bench.measured]
        better = [each for each in left if bench.value(each) > outcome.value + 0.2]
        assert all(outcome.model.predict(each)[0] > 0.75 for each in better)
    assert sum(len(bench.measured) for bench in coarse) < sum(len(bench.measured) for bench in benches)


def test_a_lucky_measurement_does_not_end_the_search():
    limit, bench = 0.75, Bench(1)
    first = bench.run(limit, measurements=1).steps[0].proposal.policy
    lucky = Observation(first, limit - 1.97 * NOISE, NOISE)
    assert not lucky.lasts(limit)
    outcome = bench.run(limit, known=[lucky], unnoticed=100.0)
    assert bench.measured[1:]
    assert outcome.stop_reason == SUFFICES
