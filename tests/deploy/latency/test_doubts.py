"""Measurements beside other work, which only later ones can tell."""

from dataclasses import replace

import numpy as np
import pytest

from deploy.latency.doubts import doubted
from deploy.latency.observed import Observation
from deploy.latency.steps import StopReason
from tests.deploy.latency.test_loop import Bench
from tests.deploy.synthetic import FP32, W8A8, policies, space

SPACE = space(3, W8A8, FP32)
POLICIES = list(policies(SPACE))


def timed(*float_ms):
    return [Observation(policy, 0.7, 0.01, ms) for policy, ms in zip(POLICIES, float_ms, strict=False)]


def test_a_slow_float_engine_casts_doubt_on_what_came_before():
    busy, quiet = doubted(timed(1.25, 1.0))
    assert busy.doubtful
    assert busy.upper == pytest.approx((0.7 + 1.96 * 0.01) * 1.25)
    assert busy.ratio == 0.7
    assert quiet == timed(1.25, 1.0)[1]


@pytest.mark.parametrize("float_ms", [(1.0, 1.25), (1.05, 1.0), (None, 1.0), (1.25, None)])
def test_no_doubt_without_a_reason(float_ms):
    assert doubted(timed(*float_ms)) == timed(*float_ms)


def test_a_machine_that_grows_warm_casts_no_doubt_on_its_cold_times():
    times = (1.0, 1.1, 1.1, 1.1, 1.1)
    assert doubted(timed(*times)) == timed(*times)


def test_only_the_next_few_are_asked():
    assert not doubted(timed(1.2, 1.2, 1.2, 1.2, 1.2, 1.0))[0].doubtful
    assert doubted(timed(1.2, 1.2, 1.2, 1.2, 1.0))[0].doubtful


class Busy(Bench):
    """Something else is at work for the first `engines`, which slows down quantised ones more than the float engine."""

    def __init__(self, seed, engines, told):
        super().__init__(seed)
        self.engines, self.told = engines, told

    def measure(self, policy):
        self.measured.append(policy.key())
        busy = len(self.measured) <= self.engines
        found = self.observation(policy)
        ratio = 1 - (1 - found.ratio) * 0.4 if busy else found.ratio
        return Observation(policy, ratio, found.standard_error, (1.25 if busy else 1.0) if self.told else None)


def test_a_search_that_began_beside_other_work_ends_as_well_as_another():
    def regret(bench):
        outcome = bench.run(0.7, measurements=12)
        assert outcome.met
        assert np.max(np.unique(bench.measured, return_counts=True)[1]) <= 2, "measured again once at most"
        return max(map(bench.value, bench.feasible(0.7))) - bench.value(outcome.policy)

    told, untold, undisturbed = (regret(Busy(0, *how)) for how in ((4, True), (4, False), (0, True)))
    assert told == pytest.approx(undisturbed)
    assert untold > told + 0.5


def in_doubt(bench, *policies):
    """Return measurements of policies beside other work, and one of a slow policy without any."""
    slow, *found = [bench.observation(policy) for policy in (bench.space.uniform(FP32), *policies)]
    return [*(replace(each, float_ms=1.25) for each in found), replace(slow, float_ms=1.0)]


def test_what_would_end_the_search_is_measured_again_at_once():
    bench = Bench(0)
    whole = bench.space.uniform(W8A8)
    limit = bench.observation(whole).ratio + 0.1
    again = Bench(0)
    outcome = again.run(limit, known=in_doubt(bench, whole), unnoticed=100.0)
    assert again.measured == [whole.key()]
    assert [step.proposal.label for step in outcome.steps] == ["again"]
    assert outcome.stop_reason == StopReason.SUFFICES


def test_an_experiment_is_not_repeated_for_the_model_alone():
    first = Bench(0)
    steps = first.run(0.7, measurements=12).steps
    experiments = [step.proposal.policy for step in steps if step.proposal.label == "experiment"]
    assert len(experiments) > 1
    later = Bench(0).run(0.7, measurements=12, known=in_doubt(first, *experiments[-3:]))
    asked = {step.proposal.policy.key() for step in later.steps if step.proposal.label == "experiment"}
    assert not asked & {each.key() for each in experiments[-3:]}


def disturbed(bench, limit, beyond=-0.01):
    """Return a measurement beside other work, as far beyond a limit by its ratio, and not within by its interval."""
    found = bench.observation(bench.space.uniform(W8A8))
    return replace(found, ratio=limit + beyond, standard_error=0.05, float_ms=1.0, slowdown=1.2)


def test_a_disturbed_measurement_near_the_limit_is_worth_another_one_and_no_third():
    found = disturbed(Bench(0), 0.7)
    assert found.unsure(0.7)
    assert not found.unsure(0.6), "it is too slow"
    assert not found.unsure(0.9), "it is fast enough in any case"
    assert not replace(found, slowdown=1.0).unsure(0.7), "it is as near as that"
    assert not replace(found, again=True).unsure(0.7)
    assert disturbed(Bench(0), 0.7, 0.03).unsure(0.7), "a standard error says nothing against it"
    assert not disturbed(Bench(0), 0.7, 0.06).unsure(0.7)


@pytest.mark.parametrize("beyond", [-0.01, 0.03])
def test_a_disturbed_measurement_of_what_would_end_the_search_is_made_again_at_once(beyond):
    bench = Bench(0)
    limit = bench.observation(bench.space.uniform(W8A8)).ratio + 0.1
    found = disturbed(bench, limit, beyond)
    bench.measured.clear()
    outcome = bench.run(limit, known=[found], unnoticed=100.0)
    assert bench.measured == [found.policy.key()]
    assert outcome.stop_reason == StopReason.SUFFICES
    bench.measured.clear()
    bench.run(limit, known=[replace(found, slowdown=1.0)], unnoticed=100.0)
    assert found.policy.key() not in bench.measured
