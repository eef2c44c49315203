"""The loop of the curve on made-up networks whose latencies and values are known."""

from __future__ import annotations

import functools
import math

import pytest

from calib.formats.format import FP32
from deploy.latency.curve import CurveLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, LoopSettings, StopReason
from smpq.problem.joins import Edge
from smpq.solve.effort import Effort
from tests.deploy.latency.test_loop import NOISE, Bench
from tests.deploy.synthetic import W4, W8A8, chain, policies, space
from tests.smpq.one_by_one import OneByOne


def loop_of(bench: Bench, most: int = 16, known=(), refusals=()) -> CurveLoop:
    groups = bench.space.groups
    starts = {"alone": {g.name: {f: -bench.loss[g.name, f] for f in bench.space.formats[g.name]} for g in groups}}
    edges = [Edge(first, second, 64) for first, second in chain(bench.space)]
    goal = Goal(math.inf, (), starts, Effort())
    settings = LoopSettings(most - len(known), designed=5)
    return CurveLoop(bench.space, edges, OneByOne(bench.value), goal, known, settings, refusals)


def drawn(loop: CurveLoop, measure, at_most: int = 1000) -> list:
    found = []
    while len(found) < at_most and (proposal := loop.ask()) is not None:
        found.append(measure(proposal.policy))
        loop.tell(proposal, found[-1])
    return found


@functools.cache
def curve(seed: int) -> tuple[Bench, list[Observation], CurveLoop]:
    """To be looked at by several tests, and not changed. The last one has too many policies to evaluate all."""
    bench = Bench(seed, space(6, W8A8, W4, FP32) if seed == 2 else None)
    loop = loop_of(bench)
    return bench, drawn(loop, bench.measure), loop


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_lies_far_beyond_the_curve(seed):
    bench, found, _ = curve(seed)
    reference = bench.space.uniform(bench.space.reference)
    points = [(bench.truth.ratio(each.policy), bench.value(each.policy)) for each in found] + [(1.0, 0.0)]
    worst = min(map(bench.value, policies(bench.space)))

    def beyond(policy) -> float:
        """How far a policy is from being beaten, in the range of either axis."""
        ratio, value = bench.truth.ratio(policy), bench.value(policy)
        return min(max(cost - ratio, (value - best) / -worst, 0.0) for cost, best in points)

    distances = sorted(beyond(policy) for policy in policies(bench.space) if policy != reference)
    assert distances[-1] <= 0.06
    assert sum(distances) / len(distances) <= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_fastest_engine_is_among_them(seed):
    bench, found, _ = curve(seed)
    best = min(map(bench.truth.ratio, policies(bench.space)))
    assert min(bench.truth.ratio(each.policy) for each in found) <= best * 1.02 + 3 * NOISE


def test_uniform_formats_come_first_and_nothing_is_measured_twice():
    bench, found, loop = curve(0)
    formats = [row[0] for row in (tuple(dict.fromkeys(each.policy.formats.values())) for each in found[:2])]
    assert formats == [chosen for chosen in bench.space.formats["layer0"] if chosen != bench.space.reference]
    assert all(len(set(each.policy.formats.values())) == 1 for each in found[:2])
    assert len(bench.measured) == len(set(bench.measured)) <= 16
    assert loop.stop_reason in (StopReason.COUNT, StopReason.COMPLETE)


def test_a_curve_that_goes_on_measures_the_rest():
    whole = Bench(1)
    expected = drawn(loop_of(whole), whole.measure)
    bench = Bench(1)
    known = drawn(loop_of(bench), bench.measure, at_most=7)
    rest = drawn(loop_of(bench, known=known), bench.measure)
    assert len(bench.measured) == len(set(bench.measured)) <= 16
    assert {each.policy.key() for each in (*known, *rest)} == {each.policy.key() for each in expected}


def test_what_does_not_build_is_not_asked_for_again():
    bench = Bench(2)
    culprit = ("layer2", W4)

    def measure(policy):
        return Refusal(policy, "no kernel", (culprit,)) if culprit in policy.formats.items() else bench.measure(policy)

    loop = loop_of(bench)
    found = drawn(loop, measure)
    assert sum(isinstance(each, Refusal) for each in found) == 1
    assert sum(isinstance(each, Observation) for each in found) > 6


def test_where_nothing_is_faster_than_the_float_engine_the_experiments_end_it():
    bench = Bench(0)
    found = drawn(loop_of(bench), lambda policy: Observation(policy, 2 - bench.truth.ratio(policy), NOISE))
    assert len(found) <= 8
