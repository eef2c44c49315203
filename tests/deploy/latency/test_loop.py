from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from calib.formats.format import FP32
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, LoopSettings, StopReason
from smpq.problem.costs import CostModel
from smpq.problem.joins import Edge
from smpq.problem.policy import Join, canonical, integer_regions
from smpq.solve.allocate import Ceiling
from smpq.solve.effort import Effort
from smpq.solve.search import EXHAUSTIVE
from tests.deploy.synthetic import W4, W8A8, Truth, chain, policies, space
from tests.smpq.one_by_one import OneByOne

NOISE = 0.002
SEEDS = range(3)


class Bench:
    """Values and latencies of a made-up network. Measuring is counted, and every policy has one noise of its own."""

    def __init__(self, seed, of=None, noise=NOISE):
        self.space = of or space(5, W8A8, W4, FP32)
        self.truth = Truth.drawn(self.space, seed)
        self.noise = noise
        generator = np.random.default_rng(seed)
        names = [group.name for group in self.space.groups]
        self.loss = {
            (n, f): generator.uniform(0.2, 1.0) * (f != FP32) for n in names for f in self.space.formats[names[0]]
        }
        self.joint = {pair: generator.uniform(0.0, 0.5) for pair in chain(self.space)}
        self.measured = []
        self.steps = []

    def value(self, policy):
        """Losses of the layers, more where two neighbours are both quantised."""
        alone = sum(self.loss[pair] for pair in policy.formats.items())
        return -alone - sum(cost for (a, b), cost in self.joint.items() if FP32 not in (policy[a], policy[b]))

    def observation(self, policy):
        error = self.noise * np.random.default_rng(list(policy.key().encode())).standard_normal()
        return Observation(policy, self.truth.ratio(policy) + error, self.noise)

    def measure(self, policy):
        self.measured.append(policy.key())
        return self.observation(policy)

    def run(self, limit, ceilings=(), known=(), measurements=40, unseen=None, unnoticed=0.0):
        starts = {
            "alone": {g.name: {f: -self.loss[g.name, f] for f in self.space.formats[g.name]} for g in self.space.groups}
        }
        edges = [Edge(first, second, 64) for first, second in chain(self.space)]
        goal = Goal(limit, ceilings, starts, Effort(), unnoticed=unnoticed)
        loop = LatencyLoop(
            self.space, edges, OneByOne(self.value), goal, known, LoopSettings(measurements), unseen=unseen
        )
        return loop.run(self.measure, self.steps.append)

    def refusing(self, culprit, limit=0.6, doubtful=(), measurements=14, *, named=False):
        """Search on a runtime that builds no engine with the choice `culprit`, and says so or not."""

        def measure(policy):
            if culprit not in policy.formats.items():
                return self.measure(policy)
            self.measured.append(policy.key())
            return Refusal(policy, "no implementation", (culprit,) if named else ())

        starts = {
            "alone": {g.name: {f: -self.loss[g.name, f] for f in self.space.formats[g.name]} for g in self.space.groups}
        }
        goal = Goal(limit, (), starts, Effort())
        loop = LatencyLoop(
            self.space, [], OneByOne(self.value), goal, (), LoopSettings(measurements), doubtful=doubtful
        )
        return loop.run(measure)

    def feasible(self, limit):
        return [policy for policy in policies(self.space) if self.truth.ratio(policy) <= limit]


@functools.cache
def searched(seed, limit):
    """A bench, and what was found on it: to be looked at by several tests, and not changed."""
    bench = Bench(seed)
    return bench, bench.run(limit)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [0.6, 0.75, 0.9])
def test_the_limit_is_met_and_nothing_better_is_expected_to_meet_it(seed, limit):
    bench, outcome = searched(seed, limit)
    assert outcome.met
    assert outcome.observation.upper <= limit
    assert outcome.value == bench.value(outcome.policy)
    assert outcome.stop_reason.startswith("no other policy")
    measured = set(bench.measured)
    better = [
        policy
        for policy in policies(bench.space)
        if bench.value(policy) > outcome.value and policy.key() not in measured
    ]
    assert all(outcome.model.predict(policy)[0] > limit for policy in better)


def test_the_best_of_all_policies_by_brute_force():
    regrets = []
    for seed in SEEDS:
        for limit in (0.6, 0.75, 0.9):
            bench, outcome = searched(seed, limit)
            found = outcome.value
            # what is within the limit by more than the noise could hide
            best = max(map(bench.value, bench.feasible(limit - 5 * NOISE)))
            worst = min(map(bench.value, bench.feasible(limit - 5 * NOISE)))
            regrets.append(max(0.0, best - found) / (best - worst))
    assert np.mean(np.array(regrets) < 1e-12) >= 0.8, "nearly always the very best"
    assert max(regrets) < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_measured_twice(seed):
    bench, outcome = searched(seed, 0.75)
    assert len(bench.measured) == len(set(bench.measured))
    proposed = [step.proposal.policy.key() for step in outcome.steps if step.proposal.label != "experiment"]
    assert len(proposed) == len(set(proposed)), "a policy that was measured to miss the limit is not proposed again"
    assert len(bench.steps) == len(outcome.steps) == len(bench.measured)


def test_what_is_known_is_not_measured_again():
    first, done = searched(1, 0.75)
    known = [first.observation(step.proposal.policy) for step in done.steps]
    again = Bench(1)
    outcome = again.run(0.75, known=known)
    assert not set(again.measured) & set(first.measured)
    assert outcome.met
    assert outcome.value >= done.value


@pytest.mark.parametrize("seed", SEEDS)
def test_out_of_reach_returns_the_closest(seed):
    bench = Bench(seed, noise=0.0)
    outcome = bench.run(0.1)
    assert not outcome.met
    assert outcome.stop_reason == StopReason.OUT_OF_REACH
    fastest = min(map(bench.truth.ratio, policies(bench.space)))
    assert outcome.observation.ratio == pytest.approx(fastest, abs=1e-9)
    assert not any(step.met for step in outcome.steps)


def test_other_budgets_hold_as_well():
    bench = Bench(2)
    parts = {
        g.name: {f: f.weight_bits / len(bench.space.groups) for f in bench.space.formats[g.name]}
        for g in bench.space.groups
    }
    bits = CostModel("avg_bits", 0.0, parts, 32.0)
    outcome = bench.run(0.9, [Ceiling(bits, 8.0)])
    assert outcome.met
    assert bits.total(outcome.policy) <= 8.0 + 1e-9
    allowed = [policy for policy in bench.feasible(0.9 - 5 * NOISE) if bits.total(policy) <= 8.0]
    assert outcome.value >= max(map(bench.value, allowed)) - 1e-12


def test_a_limit_that_float_meets_keeps_float():
    bench = Bench(0)
    outcome = bench.run(1.5)
    assert outcome.met
    assert set(outcome.policy.formats.values()) == {FP32}


def test_a_space_too_large_to_search_completely():
    bench = Bench(3, space(7, W8A8, W4, FP32))
    assert bench.space.size() > EXHAUSTIVE
    outcome = bench.run(0.75)
    assert outcome.met
    assert outcome.observation.upper <= 0.75
    assert np.mean([bench.value(policy) > outcome.value for policy in bench.feasible(0.75)]) < 0.05


def test_the_number_of_engines_is_limited():
    bench = Bench(4)
    outcome = bench.run(0.7, measurements=9)
    assert len(bench.measured) <= 9
    assert len(outcome.steps) <= 9


def test_predictions_come_before_measurements_and_hold():
    within = []
    for seed in SEEDS:
        _, outcome = searched(seed, 0.75)
        for step in outcome.steps:
            low, high = step.proposal.interval
            assert low < step.proposal.predicted < high
            if step.proposal.label != "experiment":  # before an experiment the model has seen little or nothing
                within.append(low - 2 * NOISE <= step.observation.ratio <= high + 2 * NOISE)
    assert np.mean(within) > 0.6


class Unlucky(OneByOne):
    """The value of the bench on other samples: there some policies only seemed good."""

    def __init__(self, bench, seed):
        super().__init__(
            lambda policy: bench.value(policy) + np.random.default_rng([seed, *policy.key().encode()]).normal(scale=1.0)
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_finalists_are_judged_on_unseen_samples_and_what_is_measured_does_not_depend_on_them(seed):
    limit = 0.75
    judged = Bench(seed)
    plain, before = searched(seed, limit)
    unseen = Unlucky(judged, seed)
    after = judged.run(limit, unseen=unseen)
    assert judged.measured == plain.measured
    met = [step.observation for step in after.steps if step.observation.upper <= limit]
    assert {each.policy.key() for each in after.finalists} == {each.policy.key() for each in met}
    assert len(met) > 1
    assert after.policy == after.finalists[0].policy == max((each.policy for each in met), key=unseen)
    assert after.value == judged.value(after.policy)
    assert after.observation.upper <= limit
    assert [each.unseen for each in after.finalists] == sorted(
        (unseen(each.policy) for each in after.finalists), reverse=True
    )
    assert [each.unseen for each in before.finalists] == [None] * len(met)
    assert before.policy == max((each.policy for each in met), key=plain.value)


def test_a_policy_that_only_seemed_good_is_not_the_outcome():
    best = searched(0, 0.75)[1].policy
    again = Bench(0)
    outcome = again.run(0.75, unseen=OneByOne(lambda policy: again.value(policy) - 100 * (policy.key() == best.key())))
    assert outcome.met
    assert outcome.policy != best
    assert outcome.finalists[-1].policy == best


def test_nothing_is_judged_when_nothing_meets_the_limit():
    def never(policy):
        raise AssertionError(policy)

    outcome = Bench(0, noise=0.0).run(0.1, unseen=OneByOne(never))
    assert not outcome.met
    assert outcome.finalists == ()


@pytest.mark.parametrize("layers", [4, 8], ids=["complete", "rounds"])
def test_a_join_that_is_worth_more_in_float_stays_there(layers):
    joins = (Join("sum", ("layer0", "layer1"), ("layer2",)),)
    bench = Bench(1, replace(space(layers, W8A8, W4, FP32), joins=joins), noise=0.0)
    alone = bench.value

    def value(policy):
        _, _, kept = integer_regions(policy, joins)
        integers = all(policy[name] == W8A8 for name in ("layer0", "layer1", "layer2"))
        return alone(policy) + 5.0 * integers + 0.5 * len(kept)

    bench.value = value
    outcome = bench.run(0.9, measurements=15)
    assert outcome.met
    if layers == 4:
        assert outcome.policy.float_joins == {"sum"}
        within = [replace(policy, float_joins=frozenset({"sum"})) for policy in bench.feasible(0.9)]
        assert outcome.value == max(map(value, within))
    measured = [canonical(step.proposal.policy, bench.space).key() for step in outcome.steps]
    assert len(measured) == len(set(measured)) == len(set(bench.measured))
