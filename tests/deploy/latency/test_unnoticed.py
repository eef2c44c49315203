"""A search goes on for what is noticed."""

from __future__ import annotations

import pytest

from deploy.latency.observed import Observation
from deploy.latency.steps import StopReason
from tests.deploy.latency.test_loop import NOISE, Bench, searched
from tests.deploy.synthetic import W8A8, policies


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_within_the_limit_whose_loss_nobody_notices_ends_the_search(seed):
    bench, whole = searched(seed, 0.75)
    lasting = [step for step in whole.steps if step.observation.lasts(0.75)]
    losses = [-bench.value(step.proposal.policy) for step in lasting]
    unnoticed = 1.01 * losses[0]
    hurried = Bench(seed)
    outcome = hurried.run(0.75, unnoticed=unnoticed)
    assert outcome.stop_reason == StopReason.SUFFICES
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


class Second(Bench):
    """The first policy is measured to be just within the limit, and once more as `again` says."""

    def __init__(self, seed, limit, again):
        super().__init__(seed)
        self.first = self.space.uniform(W8A8)
        self.told = [Observation(self.first, ratio, NOISE) for ratio in (limit - 1.97 * NOISE, again)]

    def measure(self, policy):
        self.measured.append(policy.key())
        return self.told[1] if policy == self.first else self.observation(policy)


def test_a_lucky_measurement_does_not_end_the_search_and_is_made_again_at_once():
    bench = Second(1, 0.75, 0.75 - 1.98 * NOISE)
    (lucky, second) = bench.told
    assert not lucky.confirmed(0.75)
    assert not second.lasts(0.75)
    outcome = bench.run(0.75, known=[lucky], unnoticed=100.0)
    assert [step.proposal.label for step in outcome.steps] == ["again"]
    assert (outcome.stop_reason, outcome.policy) == (StopReason.SUFFICES, bench.first), (
        "it was measured to be within it twice"
    )


def test_what_was_lucky_once_is_no_outcome():
    bench = Second(1, 0.75, 0.76)
    outcome = bench.run(0.75, known=[bench.told[0]], unnoticed=100.0)
    assert bench.measured.count(bench.first.key()) == 1
    assert bench.measured[1:]
    assert outcome.stop_reason == StopReason.SUFFICES
    assert outcome.policy != bench.first


def test_a_lucky_measurement_of_what_loses_something_is_made_once():
    bench = Second(1, 0.75, 0.75 - 1.98 * NOISE)
    bench.run(0.75, known=[bench.told[0]], measurements=8)
    assert bench.first.key() not in bench.measured
