from __future__ import annotations

import pytest

from deploy.latency.cheapest import CheapestLoop
from deploy.latency.loop import Goal, LoopSettings
from smpq.problem.costs import CostModel
from smpq.problem.joins import Edge
from smpq.solve.allocate import Ceiling
from smpq.solve.search import Effort
from tests.deploy.latency.test_loop import NOISE, Bench
from tests.deploy.synthetic import chain, policies
from tests.smpq.one_by_one import OneByOne


def searched(bench: Bench, most: float, ceilings=(), measurements=40, asked=None):
    """Search the fastest policy that loses at most `most` of what the made-up network's values say."""

    def allowed(policy):
        if asked is not None:
            asked.append(policy.key())
        return -bench.value(policy) <= most

    starts = {
        "alone": {g.name: {f: -bench.loss[g.name, f] for f in bench.space.formats[g.name]} for g in bench.space.groups}
    }
    edges = [Edge(first, second, 64) for first, second in chain(bench.space)]
    goal = Goal(1.0, ceilings, starts, Effort())
    loop = CheapestLoop(
        bench.space, edges, OneByOne(bench.value), goal, (), LoopSettings(measurements), allowed=allowed
    )
    return loop.run(bench.measure)


def fastest(bench: Bench, most: float) -> float:
    return min(bench.truth.ratio(policy) for policy in policies(bench.space) if -bench.value(policy) <= most)


@pytest.mark.parametrize(("most", "seed"), [(1.5, 0), (2.5, 1)])
def test_the_fastest_policy_that_is_allowed_by_brute_force(most, seed):
    bench = Bench(seed)
    outcome = searched(bench, most)
    assert outcome.met
    assert -bench.value(outcome.policy) <= most
    assert bench.truth.ratio(outcome.policy) / fastest(bench, most) - 1 <= 0.01


def test_where_nothing_may_be_lost_the_float_engine_is_handed_over():
    bench = Bench(0)
    outcome = searched(bench, 0.0)
    assert outcome.policy == bench.space.uniform(bench.space.reference)
    assert outcome.observation.ratio == 1.0


def test_where_everything_may_be_lost_nothing_is_faster():
    bench = Bench(1)
    outcome = searched(bench, 1e9)
    best = min(map(bench.truth.ratio, policies(bench.space)))
    assert bench.truth.ratio(outcome.policy) <= best * 1.02 + 3 * NOISE


def test_other_ceilings_hold_too():
    bench = Bench(2)
    parts = {
        group.name: {chosen: float(chosen.weight_bits) for chosen in bench.space.formats[group.name]}
        for group in bench.space.groups
    }
    bits = CostModel("bits", 0.0, parts, 160.0)
    free = searched(bench, 2.5, measurements=8)
    outcome = searched(bench, 2.5, [Ceiling(bits, 60.0)], measurements=12)
    assert bits.total(free.policy) > 60.0
    assert outcome.met
    assert bits.total(outcome.policy) <= 60.0


def test_what_cannot_be_had_together_is_said_and_the_closest_is_handed_over():
    bench = Bench(2)
    parts = {
        group.name: {chosen: float(chosen.weight_bits) for chosen in bench.space.formats[group.name]}
        for group in bench.space.groups
    }
    bits = CostModel("bits", 0.0, parts, 160.0)
    outcome = searched(bench, 0.5, [Ceiling(bits, 40.0)])
    assert not outcome.met
    assert bits.total(outcome.policy) <= 40.0


def test_few_engines_are_measured_and_none_twice():
    bench, asked = Bench(3), []
    searched(bench, 1.5, measurements=10, asked=asked)
    assert len(bench.measured) == len(set(bench.measured)) <= 10
    assert len(set(asked)) <= 30
